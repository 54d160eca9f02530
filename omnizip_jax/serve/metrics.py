"""Prometheus metrics of a server."""

from __future__ import annotations

import functools
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Gauges, counters and histograms in a registry of their own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        common: Any = {"namespace": "omnizip", "registry": self.registry}
        gauge = functools.partial(Gauge, **common)
        counter = functools.partial(Counter, **common)
        histogram = functools.partial(Histogram, buckets=_SECONDS, **common)
        self.sessions = gauge("sessions", "open live sessions")
        self.answers = gauge("answers", "answers running or queued")
        self.windows_waiting = gauge("windows_waiting", "queued windows")
        self.session_bytes = gauge("session_bytes", "size of the caches of sessions")
        self.answer_bytes = gauge("answer_bytes", "size of the caches of answers")
        self.clip_cache_bytes = gauge("clip_cache_bytes", "size of the cached contexts of clips")
        self.windows = counter("windows", "windows read")
        self.windows_skipped = counter("windows_skipped", "windows dropped")
        self.media_tokens = counter("media_tokens", "audio and video tokens before compression")
        self.media_tokens_kept = counter("media_tokens_kept", "the same after compression")
        self.tokens = counter("tokens", "generated tokens")
        self.decoded_answers = counter(
            "decoded_answers", "answers in decode steps, summed over the steps"
        )
        self.decode_steps = counter("decode_steps", "decode steps")
        self.refused = counter("refused", "sessions and answers refused beyond a limit")
        self.clips_read = counter("clips_read", "requests whose clips were prefilled")
        self.clip_cache_hits = counter("clip_cache_hits", "requests whose clips were cached")
        self.first_token = histogram("first_token_seconds", "time to the first text of an answer")
        self.window_wait = histogram("window_wait_seconds", "time of a window in the queue")
        self.step = histogram("step_seconds", "time of one step of an answer")
