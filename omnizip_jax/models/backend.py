"""Device-dependent choices, made once from the device that holds the weights.

Kernels written for XLA on a CPU are in ``cpu_kernels.py``, those for a GPU in ``gpu_kernels.py``.
Rows are those of ``python -m benchmarks``, the log is in docs/performance.md. GPU choices are
justified by what XLA compiles for an H200 (``python -m benchmarks.ahead``); their times have not
been measured.
"""

from __future__ import annotations

import contextlib
import enum
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax

from omnizip_jax.models.cpu_kernels import FUSED_INPUTS, TILED_ROWS

Function = TypeVar("Function", bound=Callable[..., Any])

MASKED_PATCHES = 1024  # GPU: up to this many, all scores cost little beside a layer's products
UNROLLED_TOKENS = 512  # GPU: up to this many tokens, copies of the weights take noticeable time


class Backend(enum.Enum):
    """Implementation choices that differ in speed and memory only; static under jit.

    ``CPU`` and ``CPU_MESH`` run on every device. The choices for a mesh are operations that are
    divided by heads without communication.
    """

    CPU = "cpu"
    GPU = "gpu"
    CPU_MESH = "several cpus"
    GPU_MESH = "several gpus"

    @classmethod
    def of(cls, tree: Any) -> Backend:
        """The backend of the devices that hold a tree's arrays, or of JAX's default device."""
        sharding = getattr(jax.tree.leaves(tree)[0], "sharding", None)
        devices = sharding.device_set if sharding else [_default_device()]
        on_gpu = next(iter(devices)).platform in ("gpu", "cuda")
        if len(devices) > 1:
            return cls.GPU_MESH if on_gpu else cls.CPU_MESH
        return cls.GPU if on_gpu else cls.CPU

    @property
    def on_gpu(self) -> bool:
        """Whether the devices are GPUs."""
        return self in (Backend.GPU, Backend.GPU_MESH)

    @property
    def on_mesh(self) -> bool:
        """Whether there are several devices."""
        return self in (Backend.CPU_MESH, Backend.GPU_MESH)

    @property
    def fused_attention(self) -> bool:
        """Whether attention runs in cuDNN (half precision), and to a cache in ``gpu_kernels``."""
        # Ahead: no scores or masks in memory, no copy of a layer's keys and values, and no branch
        # in a layer, whose index the host would read; 18 instead of 30 kernels a layer and token.
        return self.on_gpu

    @property
    def windows_in_sequence(self) -> bool:
        """Whether windows are encoded one after another, without the encoders they do not need."""
        # CPU: log, "encoders skip": 3.0 to 0.74-0.96 CPU seconds for 2 windows. GPU: log, "no
        # conditions under vmap": temporaries of a block of 8 windows 9,871 to 248 MiB.
        return not self.on_gpu

    @property
    def holds_weights(self) -> bool:
        """Whether loops hold weights and embeddings with ``cpu_kernels.hold_in_loop``."""
        # Rows memory.*: temporaries of the 3B in bfloat16 13.8 to 0.1 GiB (decoding), 10.8 to 0.4
        # (prefill), 2.6 to 0.3 (encoders).
        return not self.on_gpu

    @property
    def sums_single_rows(self) -> bool:
        """Whether a product with one row is an elementwise product and a sum."""
        # Ahead: a product copies each scanned layer's weights first (12.4 GiB a token for the 7B),
        # a sum reads them in place; temporaries of decoding 441 to 28 MiB.
        return self.on_gpu

    @property
    def prefill_chunks(self) -> tuple[int, ...]:
        """Tokens per decoder block of a chunked prefill: large blocks first, then small ones."""
        # CPU: row prefill.packed_*. GPU, ahead: in a loop each block copies 12.4 GiB of weights of
        # the 7B (about 5 ms), so there are few.
        return (8192, 1024) if self.on_gpu else (2048, 256)

    def unrolls_layers(self, tokens: int) -> bool:
        """Whether the layers are unrolled for a block of tokens."""
        # Ahead: a streamed window copies 0.9 GiB of weights instead of 12.4.
        return self.on_gpu and 1 < tokens <= UNROLLED_TOKENS

    def masks_windows(self, patches: int) -> bool:
        """Whether windows of a vision layer are a mask of its full attention to some patches."""
        # Ahead: no branch in the 32 layers of a streamed window, whose index the host would read;
        # encoders of 8 windows, which would compute both forms, move 48.5 instead of 57.1 GB.
        return self.on_gpu and patches <= MASKED_PATCHES

    @property
    def tiles_quantized(self) -> bool:
        """Whether quantised weights are read through ``cpu_kernels.StackedMatrix``."""
        # Row quantized.decode_int8: a conversion to memory takes longer than the product.
        return self is Backend.CPU

    def tiles_weights(self, rows: int, inputs: int) -> bool:
        """Whether products with other weights read them through ``cpu_kernels.StackedMatrix``."""
        # Row serve.batch: eight answers take 2.7 instead of 4.0 ms of processor time a token.
        # One row of more inputs: the layer's matrix would be copied, 230 instead of 11 ms.
        tiles = 1 < rows <= TILED_ROWS or (rows == 1 and inputs > FUSED_INPUTS)
        return self is Backend.CPU and tiles


def full_precision(function: Function) -> Function:
    """Compute float32 products in float32; a GPU would round their operands to 10 bits."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return cast(Function, wrapped)


@contextlib.contextmanager
def jax_defaults() -> Iterator[None]:
    """Use JAX's default dtypes and broadcasting, whatever flags the calling program has set.

    Every function that calls programs of this library runs in it: 64-bit types, strict promotion of
    dtypes, and errors for broadcasting between ranks would change or break them.
    """
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def _default_device() -> Any:
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return device if hasattr(device, "platform") else jax.devices(device)[0]
