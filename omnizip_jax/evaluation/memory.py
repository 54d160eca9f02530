"""Peak memory, of the device where it counts its own, else of the process; and too little of it."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from pathlib import Path

import jax

from omnizip_jax.media import Clip


def peak_bytes() -> int:
    """The most bytes in use since the process began."""
    return device_peak() or process_peak()


def measures() -> str:
    """What ``peak_bytes`` is about."""
    return "device memory" if device_peak() else "memory of the process"


def device_peak() -> int | None:
    """The most bytes of the device in use so far; None where it does not count them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def process_peak() -> int:
    """The most bytes of memory that this process has held."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def out_of_memory(error: Exception, clip: Clip | None) -> str:
    """What to say of a clip for which the device has too little memory.

    Raises:
        JaxRuntimeError: the error itself, if it is about anything else.
    """
    if "RESOURCE_EXHAUSTED" not in str(error) or clip is None:
        raise error
    windows = len(clip.windows.mel_length)
    return (
        f"{windows} windows do not fit into the device's memory: read fewer frames (max_frames), "
        "smaller grids (grid_slots), a part of the clip (start, end), or keep less"
    )
