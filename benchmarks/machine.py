"""This machine: names, versions, matrix rate, memory rate."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import platform

import jax
import jax.numpy as jnp

from benchmarks.harness import alternate
from omnizip_jax.evaluation.hardware import cores, processor

REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Machine:
    """Rates measured in this run, for the floors of all rows.

    Attributes:
        flops: the faster of JAX's and PyTorch's product of large square matrices, FLOP/s.
        bytes: the faster of a read and a copy of an array larger than any cache, B/s.
    """

    flops: float
    bytes: float

    def floor(self, flops: float, moved: float = 0.0) -> float:
        """Lower bound of the time, by arithmetic and by memory traffic."""
        return max(flops / self.flops, moved / self.bytes)


def measure(dtype: jnp.dtype, quick: bool = False) -> Machine:
    """Measure both rates; ``quick`` only roughly, with small arrays."""
    large = jax.default_backend() != "cpu"
    size, values = (512, 2**22) if quick else (8192, 2**29) if large else (2048, 2**26)
    return Machine(flops=_matrix_rate(dtype, size), bytes=_memory_rate(values))


def _matrix_rate(dtype: jnp.dtype, size: int) -> float:
    a, b = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
    product = jax.jit(jnp.matmul)
    calls = [lambda: product(a, b).block_until_ready()]
    if (torch := import_torch()) is not None:
        device = torch_device()
        kind = torch.float32 if dtype == jnp.float32 else torch.bfloat16
        c, d = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
        calls.append(lambda: synchronised(lambda: c @ d))
    best = min(min(timing.samples) for timing in alternate(*calls, repeats=REPEATS, warm=2))
    return 2 * size**3 / best


def _memory_rate(values: int) -> float:
    x = jax.random.normal(jax.random.key(0), (values,))
    read, copy = jax.jit(jnp.sum), jax.jit(lambda x: x + 1)
    reading, copying = alternate(
        lambda: read(x).block_until_ready(),
        lambda: copy(x).block_until_ready(),
        repeats=REPEATS,
        warm=2,
    )
    return max(x.nbytes / min(reading.samples), 2 * x.nbytes / min(copying.samples))


def import_torch():
    """Import PyTorch; None if it is not installed: then no peer is measured."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def torch_device() -> str:
    """Device of the peers: the GPU if JAX uses it and PyTorch can."""
    import torch

    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def synchronised(call):
    """Call a function and wait for PyTorch's device."""
    import torch

    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def describe() -> str:
    """Machine, versions and date, one line each."""
    device = jax.devices()[0]
    name = processor() if device.platform == "cpu" else device.device_kind
    parts = []
    for package in ("jax", "flax", "torch", "transformers", "av"):
        try:
            parts.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"no {package}")
    now = datetime.datetime.now(datetime.UTC)
    return (
        f"{name}, {cores()} cores ({platform.system()}, Python {platform.python_version()})\n"
        f"{', '.join(parts)}\n{now:%Y-%m-%d %H:%M} UTC"
    )
