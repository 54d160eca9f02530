"""Parsing of lmms-eval's requests: chat messages, generation settings, model arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omnizip_jax.compression import METHODS, Method
from omnizip_jax.inference.decode import SamplingParams

MAX_NEW_TOKENS = 256  # of tasks that set no limit


@dataclasses.dataclass(frozen=True)
class MediaPart:
    """A clip in a message.

    Attributes:
        source: a path or URL, or arrays as ``load_clip`` takes them.
        start, end: the part that is read, seconds.
    """

    source: Any
    start: float = 0.0
    end: float | None = None


def parse_messages(
    messages: Sequence[Mapping[str, Any]], system: str | None
) -> tuple[str | None, list[str | MediaPart]]:
    """The system prompt, and the parts of the user's turn.

    Args:
        messages: ``{"role": ..., "content": [...]}``, with texts, videos and audio as content.
        system: for messages without one.

    Raises:
        ValueError: images, media of unknown form, an assistant's turn, or no text at the end.
    """
    parts: list[str | MediaPart] = []
    for message in messages:
        role, content = message["role"], message["content"]
        found = [_part(each) for each in ([content] if isinstance(content, str) else content)]
        if role == "system":
            if not all(isinstance(each, str) for each in found):
                raise ValueError("a system prompt must be text; this task has media in it")
            system = "\n".join(map(str, found))
        elif role == "user":
            parts += found
        else:
            raise ValueError(
                f"a task with a turn of the role {role!r}: only one user turn after a system "
                "prompt is supported; take --num_fewshot 0"
            )
    if not parts or not isinstance(parts[-1], str):
        raise ValueError("a task whose messages do not end with a text: there is no question")
    return system, parts


def make_method(name: str, settings: Mapping[str, Any]) -> Method:
    """The method of a name; ``ValueError`` for an unknown method, setting or invalid value."""
    if name not in METHODS:
        raise ValueError(f"method={name}: unknown; take one of {', '.join(METHODS)}")
    known = [field.name for field in dataclasses.fields(METHODS[name])]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: not an argument of the model, and not a setting of the method "
            f"{name}, which has {', '.join(known) or 'none'}"
        )
    values = {
        key: None if str(value).lower() == "none" else value for key, value in settings.items()
    }
    return METHODS[name](**values)


def parse_sampling(settings: Mapping[str, Any], seed: int) -> SamplingParams:
    """A task's ``generation_kwargs``; ``ValueError`` for beam search and invalid values."""
    if (settings.get("num_beams") or 1) != 1:
        raise ValueError(f"num_beams {settings['num_beams']}: there is no beam search here; take 1")
    temperature = settings.get("temperature") or 0.0
    return SamplingParams(
        max_new_tokens=settings.get("max_new_tokens") or MAX_NEW_TOKENS,
        temperature=temperature if settings.get("do_sample", True) else 0.0,
        top_p=settings.get("top_p") or 1.0,
        seed=seed,
    )


def until_stop(text: str, settings: Mapping[str, Any]) -> str:
    """A reply up to the first of a task's stop strings (``until``: a string, or several)."""
    until = settings.get("until") or ()
    for stop in [until] if isinstance(until, str) else until:
        text = text.partition(stop)[0] if stop else text
    return text


def _part(content: Any) -> str | MediaPart:
    if isinstance(content, str):
        return content
    kind = content.get("type", "video")
    if kind == "text":
        return content["text"]
    medium = content.get("url")
    if kind == "image":
        raise ValueError(
            "a task with images: this model reads videos and audio; leave such tasks out"
        )
    # lmms-eval labels a dict of unknown kind as a video: look at its content.
    if isinstance(medium, Mapping) and "array" in medium:
        wave = np.asarray(medium["array"])
        if wave.ndim == 2:  # to mono; the channel axis is the shorter one
            wave = wave.mean(int(np.argmin(wave.shape)))
        return MediaPart((None, 1.0, wave, int(medium["sampling_rate"])))
    times = [content.get("start_time"), content.get("end_time")]
    if isinstance(medium, Mapping) and (path := medium.get("url") or medium.get("path")):
        times = [medium.get("video_start"), medium.get("video_end")]
        medium = path
    if kind not in ("video", "audio") or not isinstance(medium, str):
        raise ValueError(
            f"a task with a {kind} as {type(medium).__name__}: this model reads paths and URLs of "
            'videos and audio, and audio as {"array": ..., "sampling_rate": ...}'
        )
    return MediaPart(medium, float(times[0] or 0.0), None if times[1] is None else float(times[1]))
