"""What a method has to beat: everything, random tokens, and the tokens that change."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from omnizip_jax.compression.counts import top_mask
from omnizip_jax.compression.method import Counts
from omnizip_jax.compression.per_modality import (
    ModalitySelection,
    Rates,
    SalientSound,
    join,
    top_part,
)
from omnizip_jax.compression.rule import over_windows
from omnizip_jax.compression.share import Share
from omnizip_jax.compression.similarity import cosine
from omnizip_jax.compression.video import previous
from omnizip_jax.types import EncodedWindow, Selection


@dataclasses.dataclass(frozen=True)
class AllTokens(Share):
    """Everything is kept, or everything of one modality.

    Args:
        audio, video: whether the modality is kept.

    Raises:
        ValueError: a share to keep other than everything.
    """

    audio: bool = True
    video: bool = True
    streams: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.keep not in (None, 1) or (self.keep == 1 and not (self.audio and self.video)):
            raise ValueError(
                f"AllTokens drops no token of what it keeps: the least share is 1, got keep "
                f"{self.keep}; take RandomTokens(keep={self.keep}) for a share of everything"
            )

    def bound(self, audio_counts: Counts, video_counts: Counts) -> int:
        """Exact."""
        return int(self.audio * np.sum(audio_counts) + self.video * np.sum(video_counts))

    def step_bound(self, audio_slots: int, video_slots: int) -> int:
        return self.audio * audio_slots + self.video * video_slots

    def select(self, windows: EncodedWindow, key: PRNGKeyArray) -> Selection:
        audio, video = windows.audio.token_mask, windows.video_mask
        return Selection.of(audio, video, audio & self.audio, video & self.video)

    def begin(self, window: EncodedWindow) -> tuple[()]:
        return ()

    def step(
        self, state: tuple[()], window: EncodedWindow, key: PRNGKeyArray
    ) -> tuple[tuple[()], Selection]:
        return state, self.select(window, key)


@dataclasses.dataclass(frozen=True)
class RandomTokens(Rates):
    """Tokens drawn uniformly without replacement, of each modality by itself; streams.

    The paper's row "Random, 55 %" (section 4): both rates 0.45. With ``keep`` tokens are drawn from
    all media tokens together.

    Args:
        split: with ``keep``, draw as many of each modality as OmniZip keeps.
    """

    split: bool = False
    streams: ClassVar[bool] = True

    def sound(self, windows, count, key):
        mask = windows.audio.token_mask
        return top_part(jax.random.uniform(key, mask.shape), mask, count)

    def picture(self, windows, count, key, audio_keep):
        mask = windows.video_mask
        return top_part(jax.random.uniform(key, mask.shape), mask, count)

    def choose_share(self, windows, total, key):
        if self.split:
            return super().choose_share(windows, total, key)
        audio, video = windows.audio.token_mask, windows.video_mask
        mask = jnp.concatenate([audio.reshape(-1), video.reshape(-1)])
        scores = jax.random.uniform(key, mask.shape)
        keep = top_mask(scores, mask, total)

        def part(rows: slice, like: Array) -> ModalitySelection:
            return ModalitySelection(
                keep[rows].reshape(like.shape), scores[rows].reshape(like.shape)
            )

        sound, picture = slice(audio.size), slice(audio.size, None)
        return join(windows, part(sound, audio), part(picture, video))


@dataclasses.dataclass(frozen=True)
class TemporalOnly(SalientSound):
    """The video tokens of the clip least like the one before them in the same place.

    Audio as ``SalientSound``. The first grid, and tokens with none before them, come first.
    """

    rho_audio: float = 0.3
    rho_video: float = 0.6

    def picture(self, windows, count, key, audio_keep):
        return top_part(change(windows.video, windows.video_mask), windows.video_mask, count)


def change(video: Float[Array, "W G P D"], mask: Bool[Array, "W G P"]) -> Float[Array, "W G P"]:
    """1 - cosine with the same place of the grid before, of those that exist; 3 without one."""
    flat, exists = video.reshape(-1, *video.shape[2:]), mask.reshape(-1, mask.shape[-1])
    before = previous(exists.any(-1))
    there = (before >= 0)[:, None] & exists[before]
    return unlike(flat, before, there).reshape(mask.shape)


def unlike(
    frames: Float[Array, "T P D"], other: Int[Array, " T"], compared: Bool[Array, "T P"]
) -> Float[Array, "T P"]:
    """1 - cosine with the same place of another frame; 3 where it is not compared."""

    def one(i):  # a frame at a time: no copy of the clip
        return jnp.where(compared[i], 1 - cosine(frames[i], frames[other[i]]), 3)

    return over_windows(one, jnp.arange(len(frames)))
