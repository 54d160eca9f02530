"""Suite ``convert``: converting a random checkpoint in the released layout, and loading it.

The 3B shapes (``--preset 3b``) need 27 GB of disk during the run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Row
from benchmarks.random_checkpoint import SIZES
from benchmarks.run_state import Bench
from omnizip_jax.checkpoint.safetensors_index import SLICE_BYTES
from omnizip_jax.models.registry import family, read_config
from omnizip_jax.models.weight_mapping import array_infos

ROOT = Path(__file__).resolve().parents[1]
CONVERT = ROOT / "convert" / "hf_to_flax.py"
DISK_BYTES = 27 * 10**9
LOAD = "import sys, omnizip_jax; omnizip_jax.load(sys.argv[1])"


def run(bench: Bench) -> Iterator[Row]:
    size = bench.name
    if size not in SIZES:
        bench.say(f"convert: no random checkpoint of the size {size}; take {', '.join(SIZES)}")
        return
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if size == "3b" and free < DISK_BYTES:
        raise SystemExit(
            f"{DISK_BYTES / 1e9:.0f} GB of disk needed, {free / 1e9:.1f} GB free in "
            f"{tempfile.gettempdir()}: set TMPDIR to another place"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench.say(f"convert: writing and converting a random checkpoint, sizes tiny and {size}")
        # The tiny model measures Python, JAX and Orbax, which do not depend on the weights.
        _, baseline = convert("tiny", folder / "baseline")
        _, loaded_baseline = run_python("-c", LOAD, str(folder / "baseline" / "tiny-converted"))
        seconds, peak = convert(size, folder)
        target = folder / f"{size}-converted"
        loading, loaded = run_python("-c", LOAD, str(target))
        shutil.rmtree(target)
        run_python(str(CONVERT), str(folder / size), str(target), "--dtype", "int8")
        _, loaded_int8 = run_python("-c", LOAD, str(target))
        config = read_config(folder / size / "config.json")
        tree = family(config).parameter_tree(config, "bfloat16")
    sizes = {"/".join(info.path): info.nbytes for info in array_infos(tree)}
    largest = max(sizes, key=lambda name: sizes[name])
    total = sum(sizes.values())
    yield bench.figure(
        "convert.time",
        seconds,
        "s",
        note=f"{total / 1e9:.2f} GB in {len(sizes)} parameters, {total / 1e6 / seconds:.0f} MB/s, "
        "start of Python and JAX included",
    )
    yield bench.figure(
        "convert.memory",
        peak - baseline,
        "B",
        floor=sizes[largest],
        note=f"peak above the {baseline / 1e6:.0f} MB that the tiny model takes; the bound is "
        f"{(sizes[largest] + SLICE_BYTES) / 1e6:.0f} MB: {largest} and one slice of a shard",
    )
    yield bench.figure(
        "convert.load_memory",
        (loaded - loaded_baseline) / total,
        "x",
        note=f"of the weights, in {loading:.0f} s; the peak is {loaded / 1e9:.2f} GB, of which the "
        f"tiny model takes {loaded_baseline / 1e9:.2f}",
    )
    yield bench.figure(
        "convert.load_int8",
        loaded_int8 / loaded,
        "share",
        note=f"of the peak in bfloat16, {loaded_int8 / 1e9:.2f} GB",
    )


def convert(size: str, folder: Path) -> tuple[float, int]:
    """Write and convert a random checkpoint: seconds and peak memory of the conversion."""
    source, target = folder / size, folder / f"{size}-converted"
    module = "benchmarks.random_checkpoint"
    write = f"import sys; from {module} import write_random_checkpoint as write"
    run_python("-c", f"{write}; write(sys.argv[1], sys.argv[2])", str(source), size)
    return run_python(str(CONVERT), str(source), str(target))


def run_python(*command: str) -> tuple[float, int]:
    """Run a Python program: seconds, and peak of its resident memory in bytes.

    A small program starts it, because Linux includes the parent's memory at the start in the
    child's peak.
    """
    launcher = (
        "import os, subprocess, sys, time; start = time.perf_counter(); "
        "process = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=sys.stderr); "
        "_, status, usage = os.wait4(process.pid, 0); "
        "print(os.waitstatus_to_exitcode(status), time.perf_counter() - start, usage.ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", launcher, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    code, seconds, peak = done.stdout.split()
    if int(code):
        raise SystemExit(f"failed: {' '.join(command)}\n{done.stderr}")
    return float(seconds), int(peak) * (1 if sys.platform == "darwin" else 1024)
