"""Chat messages as lmms-eval has them: a system prompt, and what the user shows and says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shown:
    """A clip as a task names it.

    Attributes:
        source: a path or URL, or arrays as ``load_clip`` takes them.
        start, end: only this part, seconds.
    """

    source: Any
    start: float = 0.0
    end: float | None = None


def parts_of(messages: Sequence[Mapping[str, Any]], system: str) -> tuple[str, list[str | Shown]]:
    """The system prompt and the user's turn.

    Args:
        messages: ``{"role": ..., "content": [...]}``, with texts, videos and sounds as content.
        system: the system prompt, if none is among them.

    Raises:
        ValueError: images, media of unknown form, an assistant's turn, or no text at the end.
    """
    parts: list[str | Shown] = []
    for message in messages:
        role, content = message["role"], message["content"]
        found = [_part(each) for each in ([content] if isinstance(content, str) else content)]
        if role == "system":
            if not all(isinstance(each, str) for each in found):
                raise ValueError("a system prompt is text; this task shows media in it")
            system = "\n".join(map(str, found))
        elif role == "user":
            parts += found
        else:
            raise ValueError(
                f"a task with a turn of the role {role!r}: one turn of the user is answered, "
                "behind a system prompt; take --num_fewshot 0"
            )
    if not parts or not isinstance(parts[-1], str):
        raise ValueError("a task whose messages do not end with a text: there is no question")
    return system, parts


def _part(content: Any) -> str | Shown:
    if isinstance(content, str):
        return content
    kind = content.get("type", "video")
    if kind == "text":
        return content["text"]
    medium = content.get("url")
    if kind == "image":
        raise ValueError(
            "a task with images: this model reads videos and sound; leave such tasks out"
        )
    # A dict from which lmms-eval could not tell what it is comes as a video: look at what is in it.
    if isinstance(medium, Mapping) and "array" in medium:
        return Shown((None, 1.0, _mono(medium["array"]), int(medium["sampling_rate"])))
    times = [content.get("start_time"), content.get("end_time")]
    if isinstance(medium, Mapping) and (path := medium.get("url") or medium.get("path")):
        times = [medium.get("video_start"), medium.get("video_end")]
        medium = path
    if kind not in ("video", "audio") or not isinstance(medium, str):
        raise ValueError(
            f"a task with a {kind} as {type(medium).__name__}: this model reads paths and URLs of "
            'videos and sounds, and sounds as {"array": ..., "sampling_rate": ...}'
        )
    return Shown(medium, float(times[0] or 0.0), None if times[1] is None else float(times[1]))


def _mono(samples: Any) -> np.ndarray:
    """Channels averaged; there are fewer of them than samples."""
    samples = np.asarray(samples)
    return samples.mean(int(np.argmin(samples.shape))) if samples.ndim == 2 else samples
