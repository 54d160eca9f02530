"""VidCom2 (repository xuyang-liu16/VidCom2, and vLLM): tokens unlike their frame and their clip."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.compression.counts import salience_order
from omnizip_jax.compression.method import Count
from omnizip_jax.compression.omnizip_budget import water_fill, whole_shares
from omnizip_jax.compression.omnizip_video import over_windows, scan_windows
from omnizip_jax.compression.per_modality import ModalitySelection, Rates
from omnizip_jax.compression.similarity import norms

WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)  # alpha of the Gaussian similarities
TEMPERATURE = 0.01


@dataclasses.dataclass(frozen=True)
class VidCom2(Rates):
    """The video tokens least like the mean of their grid and of the clip; unusual grids keep more.

    On the half of the channels that varies least, with unit tokens x, a mean c and
    ``g(x, c) = sum_alpha exp(-|x - c|^2 / (2 alpha))``: the tokens with the lowest
    ``g(x, clip) + g(x, grid)`` of a grid are kept. A grid gets tokens in proportion to
    ``1 + p - mean(p)``, where p is the softmax over grids of ``-mean g(x, clip) / 0.01``; the
    counts add up to the share exactly. The audio is kept whole without ``keep``.
    """

    rho_audio: float = 0.0
    rho_video: float = 0.75

    def select_video(self, windows, count, key, audio_keep):
        mask, video = windows.video_mask, windows.video
        masks = mask.reshape(-1, mask.shape[-1])
        to_clip, to_grid = likeness(video.reshape(*masks.shape, -1), masks)
        sizes = jnp.sum(masks, -1)
        unusual = -jnp.sum(to_clip, -1) / jnp.maximum(sizes, 1)
        kept = grid_counts(unusual, sizes, count)
        order = jax.vmap(salience_order)(-(to_clip + to_grid), masks)
        return ModalitySelection(((order < kept[:, None]) & masks).reshape(mask.shape))


def likeness(
    grids: Float[Array, "T P D"], mask: Bool[Array, "T P"]
) -> tuple[Float[Array, "T P"], Float[Array, "T P"]]:
    """Similarity of every token to the mean of the clip and to that of its grid; 0 in padding."""
    tokens = jnp.maximum(jnp.sum(mask), 1)

    def total(function) -> Array:  # a grid at a time: no copy of the clip
        def add(so_far, grid, valid):
            return so_far + jnp.sum(jnp.where(valid[:, None], function(grid), 0), 0)

        width = jax.eval_shape(function, grids[0]).shape[-1]
        return scan_windows(add, jnp.zeros(width, jnp.float32), grids, mask)

    mean = total(lambda grid: grid.astype(jnp.float32)) / tokens
    variance = total(lambda grid: jnp.square(grid.astype(jnp.float32) - mean)) / tokens
    _, channels = jax.lax.top_k(-variance, variance.size // 2)

    def unit_tokens(grid):
        chosen = grid[:, channels].astype(jnp.float32)
        return chosen / jnp.maximum(norms(chosen), 1e-12)[:, None]

    centre = total(unit_tokens) / tokens

    def gaussian(tokens, middle):
        distance = jnp.sum(jnp.square(tokens - middle), -1)
        return sum(jnp.exp(-distance / (2 * width)) for width in WIDTHS)

    def grid_likeness(grid, valid):
        unit = unit_tokens(grid)
        middle = jnp.sum(jnp.where(valid[:, None], unit, 0), 0) / jnp.maximum(jnp.sum(valid), 1)
        similarity = jnp.stack([gaussian(unit, centre), gaussian(unit, middle)])
        return jnp.where(valid, similarity, 0)

    similarity = over_windows(grid_likeness, grids, mask)
    return similarity[:, 0], similarity[:, 1]


def grid_counts(
    unusual: Float[Array, " T"], sizes: Int[Array, " T"], count: Count
) -> Int[Array, " T"]:
    """Numbers of tokens to keep of every grid, higher for unusual ones, ``count`` in all."""
    exists = sizes > 0
    share = jax.nn.softmax(jnp.where(exists, unusual / TEMPERATURE, -jnp.inf), where=exists)
    weight = 1 + share - 1 / jnp.maximum(jnp.sum(exists), 1)
    weights = jnp.where(exists, weight * sizes, 1)
    upper = sizes.astype(jnp.float32)
    shares = water_fill(weights, jnp.zeros_like(upper), upper, jnp.float32(count))
    return whole_shares(shares, sizes, count)
