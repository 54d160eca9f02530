"""Windows to encoded windows: what the families' ``encode_window`` share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from omnizip_jax import window_spec
from omnizip_jax.models.config import BaseModelConfig
from omnizip_jax.types import Window
from omnizip_jax.window_spec import WindowSpec


def check_spec(spec: WindowSpec, config: BaseModelConfig) -> None:
    """Raise ``ValueError`` unless the model's encoders accept windows of this shape."""
    window_spec.check_spec(spec)
    own = config.spec
    if (spec.seconds, spec.audio_slots) != (own.seconds, own.audio_slots):
        raise ValueError(
            f"the model's audio blocks are {own.seconds} s and {own.audio_slots} tokens; "
            f"WindowSpec has {spec.seconds} s and {spec.audio_slots}: begin with params.config.spec"
        )
    for name in (
        "patch",
        "merge",
        "temporal_patch",
        "mel_bins",
        "min_mel_frames",
        "positions_per_second",
    ):
        ours, theirs = getattr(own, name), getattr(spec, name)
        if ours != theirs:
            raise ValueError(
                f"the model's encoders have {name}={ours}, WindowSpec has {theirs}: "
                "begin with params.config.spec"
            )


def encode_if(exists: Bool[Array, ""], encode: Callable[[], Any], skip: bool) -> Any:
    """The result of ``encode``; if ``skip``, zeros without running it where nothing exists."""
    if not skip:
        return encode()
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(encode))
    return jax.lax.cond(exists, encode, lambda: zeros)


def applied(module: nn.Module, params: Any) -> Callable[..., Any]:
    """The module with its parameters as a function, which JAX's transformations may contain."""
    return functools.partial(module.apply, {"params": params})


def encode_video(
    encoder: Callable[..., Any], window: Window, attention: bool, skip: bool
) -> dict[str, Any]:
    """Encode the grids of one window: the fields of ``EncodedWindow`` for the video.

    Args:
        encoder: the vision encoder (``applied``): patches of one grid, its size and
            ``attention`` to tokens [P, D], DeepStack rows [K, P, D] or None, and
            ``VisionFeatures`` or None.
        attention: make the features.
        skip: as in ``encode_if``.
    """

    def encode_grid(patches: Array) -> tuple[Array, Any, Any]:
        return encoder(patches, window.grid_size, attention)

    def encode() -> tuple[Array, Any, Any]:
        return jax.vmap(encode_grid, out_axes=(0, 1, 0))(window.patches)

    video, deepstack, vision = encode_if(jnp.any(window.grid_mask), encode, skip)
    mask = window.grid_mask[:, None] & (jnp.arange(video.shape[1]) < jnp.prod(window.grid_size))
    if vision is not None:
        vision = vision.replace(received=jnp.where(mask, vision.received, 0))
    return {"video": video, "video_mask": mask, "vision": vision, "deepstack": deepstack}


def map_windows(encode: Callable[[Any], Any], windows: Any, sequential: bool) -> Any:
    """``encode`` for every element of the leading axis, one after the other or at once."""
    return jax.lax.map(encode, windows) if sequential else jax.vmap(encode)(windows)
