"""DyCoke's first stage, TTM (arXiv 2411.15024, repository KD-TAO/DyCoke), on video and on audio.

Frames come in groups of four, 0 to 3. At the same position frames 1 and 3 are compared with frames
0 and 2, and frame 2 with frame 0, by cosine. Frame 0 is kept whole; of a compared frame the least
similar tokens are kept. As in the code, frame 2 of the last group is kept whole, too.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.compression.counts import apportion, salience_order
from omnizip_jax.compression.method import Count
from omnizip_jax.compression.omnizip_video import frame_distance, place_in_run
from omnizip_jax.compression.per_modality import ModalitySelection, Rates
from omnizip_jax.window_spec import check_positive


@dataclasses.dataclass(frozen=True)
class DyCoke(Rates):
    """Temporal token merging: discards tokens that are similar to the frame before.

    The published rate k, of a compared frame, keeps the share ``(1 + 3 (1 - k)) / 4`` of all; here
    that share is set and met exactly: what the whole frames leave of it is divided evenly between
    the compared ones. Whole frames lose tokens only in clips too short for the share.

    Args:
        rho_audio, rho_video: share to discard; 0.5 is k = 2/3. At most 0.75.
        audio_frame: audio tokens in a frame, inside a window. The paper does not define an audio
            frame.

    Raises:
        ValueError: a share that whole frames alone exceed, or not a share.
    """

    rho_audio: float = 0.5
    rho_video: float = 0.5
    audio_frame: int = 12
    split: str = dataclasses.field(default="uniform", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        least = 1 - max(self.rho_audio, self.rho_video) if self.keep is None else self.keep
        if least < 0.25:
            raise ValueError(
                f"DyCoke keeps one frame of four whole: the least share is 0.25, got {least:.4g}"
            )
        check_positive(self, "audio_frame")

    def select_audio(self, windows, count, key):
        audio, size = windows.audio, self.audio_frame
        shape = audio.token_mask.shape
        padding = -shape[1] % size
        tokens = jnp.pad(audio.tokens, ((0, 0), (0, padding), (0, 0)))
        mask = jnp.pad(audio.token_mask, ((0, 0), (0, padding)))
        frames = mask.size // size
        window = jnp.repeat(jnp.arange(shape[0]), frames // shape[0])
        keep = merge_in_time(
            tokens.reshape(frames, size, -1), mask.reshape(frames, size), window, count
        )
        return ModalitySelection(keep.reshape(mask.shape)[:, : shape[1]])

    def select_video(self, windows, count, key, audio_keep):
        mask = windows.video_mask
        frames = mask.reshape(-1, mask.shape[-1])
        clip = jnp.zeros(len(frames), jnp.int32)
        video = windows.video.reshape(*frames.shape, -1)
        return ModalitySelection(merge_in_time(video, frames, clip, count).reshape(mask.shape))


def merge_in_time(
    frames: Float[Array, "T P D"],
    mask: Bool[Array, "T P"],
    sequence: Int[Array, " T"],
    count: Count,
) -> Bool[Array, "T P"]:
    """The mask of the ``count`` tokens to keep of a sequence of frames.

    Args:
        frames, mask: P tokens in each of T frames; frames without any do not count.
        sequence: index of each frame's sequence, ascending; groups of four start with a sequence.
        count: tokens to keep of all sequences together.
    """
    exists = mask.any(-1)
    number, place = jnp.cumsum(exists) - exists, place_in_run(exists, sequence)
    length = jax.ops.segment_sum(exists.astype(jnp.int32), sequence, exists.size)[sequence]
    last_group = place // 4 == (length - 1) // 4
    whole = (place % 4 == 0) | ((place % 4 == 2) & last_group)

    # How far back each frame is compared; whole frames too, in case they must lose tokens.
    back = jnp.where(place % 2 == 1, 1, jnp.where(place % 4 == 2, 2, 4))
    (index,) = jnp.nonzero(exists, size=exists.size, fill_value=0)
    other = index[jnp.maximum(number - back, 0)]
    compared = (place >= back)[:, None] & mask[other]
    scores = frame_distance(frames, other, compared)

    sizes = jnp.sum(mask, -1)
    whole_sizes, other_sizes = jnp.where(whole, sizes, 0), jnp.where(whole, 0, sizes)
    whole_count = jnp.minimum(count, jnp.sum(whole_sizes))
    kept = apportion(whole_count, whole_sizes) + apportion(count - whole_count, other_sizes)
    return (jax.vmap(salience_order)(scores, mask) < kept[:, None]) & mask
