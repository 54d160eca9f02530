"""What several test files share: one tiny model, in every form in which it exists."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.experimental import pallas

from benchmarks.random_checkpoint import write_random_checkpoint
from omnizip_jax.checkpoint.convert import convert
from omnizip_jax.checkpoint.folder import load_tokenizer, read_stop_tokens
from omnizip_jax.checkpoint.load import load
from omnizip_jax.media import Clip
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.models.registry import read_config
from omnizip_jax.testbed.random_checkpoint import write_random_checkpoint as write_random_qwen3
from omnizip_jax.types import Window
from omnizip_jax.window_spec import WindowSpec

MAPPINGS = 25_000
NO_THREADS = " --xla_cpu_multi_thread_eigen=false"
# Two thirds and one third of the time that XLA takes without them.
SOME_OPTIMISATION = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1"
NO_OPTIMISATION = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"


def pytest_configure(config):
    """One compilation cache for the run, so that its processes compile a program once."""
    # A shell lets its background jobs ignore Ctrl-C, and so would all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    is_fast = config.option.markexpr == "not slow"  # the full tier computes longer
    os.environ.setdefault("XLA_FLAGS", NO_OPTIMISATION if is_fast else SOME_OPTIMISATION)
    if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core: threads would only wait
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + NO_THREADS
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers and children inherit it
        folder = tempfile.TemporaryDirectory(prefix="omnizip_xla_")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    jax.config.update("jax_num_cpu_devices", 8)  # for tests/inference/test_mesh.py
    if not is_fast:
        os.environ.setdefault("NPROC", "32")  # threads of XLA: eight devices block that many
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Let go of compiled programs before Linux runs out of memory mappings (65,530 a process)."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MAPPINGS:
        jax.clear_caches()  # what is needed again comes from the run's compilation cache


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """The tests leave the user's cache alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def unchecked():
    """Without the check of array annotations: for arrays that the library itself refuses."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def interpreted_kernels(monkeypatch):
    """The kernels of ``gpu_kernels`` are interpreted, so that they run on a CPU."""
    interpreted = functools.partial(pallas.pallas_call, interpret=True)
    monkeypatch.setattr(pallas, "pallas_call", interpreted)


@pytest.fixture(scope="session")
def small(cache_folder):
    """The small trained model that comes along."""
    return load("small", dtype="float32")


@pytest.fixture(scope="session")
def released_folder(tmp_path_factory):
    """A tiny checkpoint in the released layout."""
    return write_random_checkpoint(tmp_path_factory.mktemp("released"), "tiny")


@pytest.fixture(scope="session")
def thinker(released_folder):
    """transformers' thinker on the tiny checkpoint."""
    from tests.parity.oracle import Thinker

    return Thinker(released_folder, read_config(released_folder / "config.json"))


@pytest.fixture(scope="session")
def params(released_folder, thinker):
    """The same weights for this library, float32, converted by the tests' own code.

    On the device and with the settings of ``tiny``, so that both share their programs.
    """
    return Params(
        weights=jax.device_put(thinker.weights(), jnp.zeros(()).sharding),
        config=thinker.config,
        tokenizer=load_tokenizer(released_folder),
        stop_tokens=read_stop_tokens(released_folder, thinker.config),
    )


@pytest.fixture(scope="session")
def checkpoint(released_folder, tmp_path_factory):
    """The tiny checkpoint, converted to float32; do not change it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    convert(released_folder, folder, "float32")
    return folder


@pytest.fixture(scope="session")
def tiny(checkpoint):
    """The model of that checkpoint."""
    return load(checkpoint)


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory):
    """A tiny Qwen3-Omni with random weights, float32."""
    folder = tmp_path_factory.mktemp("qwen3")
    write_random_qwen3(folder / "released")
    convert(folder / "released", folder / "converted", "float32")
    return load(folder / "converted")


@pytest.fixture(scope="session")
def random_windows():
    return make_windows


def make_windows(
    grids: list[int],
    mel_lengths: list[int],
    cells: tuple[int, int] = (3, 5),
    spec: WindowSpec = WindowSpec(grid_slots=16),  # noqa: B008 (frozen)
    seed: int = 0,
) -> Window:
    """A clip of random pixels and mel, with so many grids and mel frames in each window."""
    rng = np.random.default_rng(seed)
    empty = Window.empty(spec, len(grids))
    return empty.replace(
        patches=rng.integers(0, 256, empty.patches.shape, dtype=np.uint8),
        grid_size=empty.grid_size * np.array(cells, np.int32),
        grid_mask=np.arange(spec.grids) < np.array(grids)[:, None],
        mel=rng.standard_normal(empty.mel.shape).astype(np.float32)
        * (np.arange(spec.mel_frames) < np.array(mel_lengths)[:, None, None]),
        mel_length=np.array(mel_lengths, np.int32),
    )


def clip_of(windows: Window, spec: WindowSpec | None = None, seconds_per_grid: float = 1.0) -> Clip:
    """Given windows as a clip, to be read without a file; ``spec`` is theirs, if none is given."""
    own = WindowSpec()
    cells = windows.patches.shape[-2] // own.merge**2
    return Clip(
        windows,
        duration=2.0 * len(windows.mel_length),
        seconds_per_grid=seconds_per_grid,
        has_video=bool(np.any(windows.grid_mask)),
        has_audio=bool(np.any(windows.mel_length)),
        spec=spec or dataclasses.replace(own, grid_slots=cells),
    )
