"""How a device computes best what any device can compute; chosen once, where the weights lie."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Backend:
    """Ways through the networks that differ in speed and memory alone; static under jit.

    The defaults serve a CPU, and run everywhere.

    Attributes:
        fused_attention: half precision attends in cuDNN's kernel.
        summed_rows: a product with one row is multiplied and summed, which reads the weights where
            they are.
        unrolled: the layers of a short block of tokens are unrolled.
        tiled: products with a few rows take the weights tile by tile, straight from the stack.
        held: weights that a loop uses are held in it.
        one_by_one: windows are encoded one after another, and what they lack is skipped.
    """

    fused_attention: bool = False
    summed_rows: bool = False
    unrolled: bool = False
    tiled: bool = True
    held: bool = True
    one_by_one: bool = True

    @classmethod
    def of(cls, tree: Any) -> Backend:
        """Those for the device of a tree's arrays; for JAX's default device if they have none."""
        sharding = getattr(jax.tree.leaves(tree)[0], "sharding", None)
        device = min(sharding.device_set, key=lambda x: x.id) if sharding else _default_device()
        return GPU if device.platform in ("gpu", "cuda") else cls()


def full_precision(function: Function) -> Function:
    """Products of float32 are float32's: a GPU would round their operands to 10 bits."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return cast(Function, wrapped)


def _default_device() -> Any:
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return device if hasattr(device, "platform") else jax.devices(device)[0]


GPU = Backend(
    fused_attention=True,
    summed_rows=True,
    unrolled=True,
    tiled=False,
    held=False,
    one_by_one=False,
)
