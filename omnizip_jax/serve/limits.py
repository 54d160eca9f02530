"""How much the server takes on."""

from __future__ import annotations

import dataclasses
import math

MiB = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on what clients may ask for; what exceeds them is refused with a reason.

    Args:
        sessions: live sessions at once; each holds one cache of ``capacity`` slots.
        answers: answers at once, those that wait included; each holds a copy of a cache, in a lane
            or out of one.
        answer_bytes: of these copies together.
        windows: of one session that wait for the device; the oldest are dropped.
        capacity: slots of a session's cache.
        text_slots: room in it for a question and its answer.
        kept_bytes: of the contexts of clips that were asked about.
        upload: bytes of a request, and of a medium.
        seconds: of a clip, and seconds of pictures or sound that a session may send ahead.
        pixels: of a picture.
        frames_per_second: of live pictures; those in excess are dropped.
        messages, text, tokens: turns of a conversation, characters in it, tokens of an answer.
        idle: seconds without a message after which a session ends.
        decoding: seconds until the decoding of a medium is given up.
        waiting: seconds until the next step of an answer is given up, or the rest of a request.

    Raises:
        ValueError: a bound that is not positive.
    """

    sessions: int = 16
    answers: int = 32
    answer_bytes: int = 8192 * MiB
    windows: int = 4
    capacity: int = 8192
    text_slots: int = 1024
    kept_bytes: int = 2048 * MiB
    upload: int = 64 * MiB
    seconds: float = 600.0
    pixels: int = 4096 * 2304
    frames_per_second: float = 10.0
    messages: int = 64
    text: int = 32_768
    tokens: int = 1024
    idle: float = 300.0
    decoding: float = 60.0
    waiting: float = 120.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, bool) or not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
