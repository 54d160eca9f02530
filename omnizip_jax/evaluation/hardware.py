"""Hardware of a run: device, cores, package versions, peak memory, and out-of-memory errors."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import resource
import sys
from pathlib import Path
from typing import Any

import jax

from omnizip_jax.media import Clip

PACKAGES = ("omnizip_jax", "jax", "flax", "transformers", "av")


def describe_machine() -> dict[str, Any]:
    """Device, cores, operating system, versions, kind of memory, and the current time."""
    device = jax.devices()[0]
    return {
        "device": processor() if device.platform == "cpu" else device.device_kind,
        "cores": cores(),
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "memory": "device memory" if device_peak() else "memory of the process",
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The name of the processor."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def peak_bytes() -> int:
    """Peak memory so far: of the device where it reports it, otherwise of the process."""
    return device_peak() or process_peak()


def device_peak() -> int | None:
    """Peak memory of the device in bytes; None where the device does not report it."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def process_peak() -> int:
    """Peak resident memory of this process in bytes."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def out_of_memory(error: Exception, clip: Clip | None) -> str:
    """A message for a clip that exceeds the device's memory; raises any other error again."""
    if "RESOURCE_EXHAUSTED" not in str(error) or clip is None:
        raise error
    windows = len(clip.windows.mel_length)
    return (
        f"{windows} windows do not fit into the device's memory: read fewer frames (max_frames), "
        "smaller grids (grid_slots), a part of the clip (start, end), or keep less"
    )
