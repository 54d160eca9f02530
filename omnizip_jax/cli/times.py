"""Times of a stream as a person writes them."""

from __future__ import annotations

import math

END = math.inf  # the time of a question that waits for the end of the stream


def parse_time(text: str) -> float:
    """Seconds of "30", "00:30", "1:02:03"; ``END`` for "end".

    Raises:
        ValueError: anything else.
    """
    if text.strip().lower() == "end":
        return END
    parts = text.strip().split(":")
    try:
        units = [int(part) for part in parts[:-1]] + [float(parts[-1])]
    except ValueError:
        units = [math.nan]
    # After the first, minutes and seconds stay below 60; nan fails every comparison.
    if len(units) > 3 or not all(0 <= u < (60 if i else math.inf) for i, u in enumerate(units)):
        raise ValueError(f'{text!r} is no time to ask at: write MM:SS, H:MM:SS, seconds, or "end"')
    return sum(unit * 60**power for power, unit in enumerate(reversed(units)))


def clock(seconds: float) -> str:
    """Stream time as a person writes it: 00:30, 1:02:03."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
