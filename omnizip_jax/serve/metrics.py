"""What Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The counters of one server."""

    def __init__(self):
        self.registry = CollectorRegistry()

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"omnizip_{name}", what, registry=self.registry)

        def counter(name: str, what: str) -> Counter:
            return Counter(f"omnizip_{name}", what, registry=self.registry)

        def histogram(name: str, what: str) -> Histogram:
            return Histogram(f"omnizip_{name}", what, registry=self.registry, buckets=_SECONDS)

        self.sessions = gauge("sessions", "live sessions")
        self.answers = gauge("answers", "answers that run or wait")
        self.windows_waiting = gauge("windows_waiting", "windows that wait for the device")
        self.session_bytes = gauge("session_bytes", "memory of the caches of sessions")
        self.answer_bytes = gauge("answer_bytes", "memory of the caches of answers")
        self.kept_bytes = gauge("kept_bytes", "memory of the contexts of clips")
        self.windows = counter("windows", "windows read")
        self.windows_skipped = counter("windows_skipped", "windows dropped")
        self.media_tokens = counter("media_tokens", "audio and video tokens that came")
        self.media_tokens_kept = counter("media_tokens_kept", "those that the decoder read")
        self.tokens = counter("tokens", "tokens made")
        self.lanes = counter("lanes", "lanes of the steps that made them; over steps: side by side")
        self.decode_steps = counter("decode_steps", "steps that made them")
        self.refused = counter("refused", "sessions and answers refused beyond a bound")
        self.clips_read = counter("clips_read", "times that clips were read")
        self.clips_remembered = counter("clips_remembered", "times that they needed no reading")
        self.first_token = histogram("first_token_seconds", "from a question to its first text")
        self.window_wait = histogram("window_wait_seconds", "from a window to its reading")
        self.step = histogram("step_seconds", "one step of an answer")
