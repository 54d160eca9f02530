"""Peak memory and time of a conversion at the real 3B shapes, with random weights.

Run ``python benchmarks/conversion.py``. It needs 20 GB of disk for the time of the run.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CONVERT = REPOSITORY / "convert" / "hf_to_flax.py"
DISK_BYTES = 20 * 10**9
GB = 1e9


def run(*command: str) -> tuple[float, int]:
    """Run a Python program; seconds and the peak of its resident memory in bytes.

    Every step is a process of its own, and this one stays small: Linux counts the memory of the
    parent, at the time of the start, to the child.
    """
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=REPOSITORY)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"failed: {' '.join(command)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, usage.ru_maxrss * unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="3b", choices=("small", "3b"))
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    arguments = parser.parse_args()
    free = shutil.disk_usage(arguments.folder or tempfile.gettempdir()).free
    if arguments.size == "3b" and free < DISK_BYTES:
        sys.exit(f"{DISK_BYTES / GB:.0f} GB of disk needed, {free / GB:.1f} GB free: see --folder")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(arguments.size, Path(folder))


def measure(size: str, folder: Path) -> None:
    # The tiny model shows what Python, JAX and Orbax take, whatever the size of the weights.
    _, baseline = convert("tiny", folder)
    seconds, peak = convert(size, folder)
    report(folder / size, seconds, peak, baseline)


def convert(size: str, folder: Path) -> tuple[float, int]:
    source, target = folder / size, folder / f"{size}-converted"
    write = "import sys; from omnizip_jax.demo.checkpoint import write_random_checkpoint as write"
    seconds, _ = run("-c", f"{write}; write(sys.argv[1], sys.argv[2])", str(source), size)
    print(f"wrote a random {size} checkpoint in {seconds:.0f} s", flush=True)
    return run(str(CONVERT), str(source), str(target))


def report(source: Path, seconds: float, peak: int, baseline: int) -> None:
    from omnizip_jax.config import ModelConfig
    from omnizip_jax.released import SLICE_BYTES, released_leaves

    leaves = released_leaves(ModelConfig.from_file(source / "config.json"))
    sizes = {"/".join(leaf.path): 2 * math.prod(leaf.shape) for leaf in leaves}
    largest = max(sizes, key=lambda name: sizes[name])
    total = sum(sizes.values())
    rows = {
        "weights": f"{total / GB:.2f} GB in {len(sizes)} parameters",
        "largest parameter": f"{sizes[largest] / GB:.3f} GB ({largest})",
        "bound: largest + one slice": f"{(sizes[largest] + SLICE_BYTES) / GB:.3f} GB",
        "peak above the baseline": f"{(peak - baseline) / GB:.3f} GB",
        "baseline: the tiny model": f"{baseline / GB:.3f} GB",
        "peak of the process": f"{peak / GB:.3f} GB",
        "time": f"{seconds:.1f} s, {total / 1e6 / seconds:.0f} MB/s",
    }
    for name, value in rows.items():
        print(f"{name:30}  {value}")


if __name__ == "__main__":
    main()
