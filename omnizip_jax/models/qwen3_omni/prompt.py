"""Media in the prompt: markers around a clip, order and positions of the tokens of a window.

Every marker has its own position. Video and audio tokens are merged by time, video first.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from omnizip_jax.types import Window

DEFAULT_SYSTEM = None
MARKERS_SHARE_POSITION = False


def token_order(window: Window, grid_slots: int, audio_slots: int) -> Int[Array, " slots"]:
    """Order of a window's slots in the sequence, by time.

    A grid comes before the audio of the same time. Slots are numbered grid by grid, then audio.
    """
    video = jnp.repeat(2 * window.grid_time, grid_slots)
    return jnp.argsort(jnp.concatenate([video, 2 * jnp.arange(audio_slots) + 1]), stable=True)


def position_after(
    window: Window,
    audio_mask: Bool[Array, "A"],
    time: Int[Array, ""] | int,
    base: Int[Array, ""] | int,
) -> Int[Array, ""]:
    """Position of the first token after a clip, from its last window.

    As in transformers' ``get_rope_index``, text continues from the end of the merged tokens: from
    the audio if its last token is the last of all, otherwise from the greatest position on any axis
    of the video.
    """
    audio = jnp.sum(audio_mask)
    last_grid = jnp.max(jnp.where(window.grid_mask, window.grid_time, -1))
    after_video = jnp.maximum(time + last_grid, base + jnp.max(window.grid_size) - 1) + 1
    return jnp.where(audio > last_grid, time + audio, after_video)
