"""Methods in two parts, one for the sound and one for the picture, so that parts can be mixed."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from omnizip_jax.compression.audio import attention_scores
from omnizip_jax.compression.counts import (
    as_fraction,
    lookup,
    round_share,
    salience_order,
    top_mask,
)
from omnizip_jax.compression.method import Counts, check_share
from omnizip_jax.compression.share import RunningShare, Share, most_at_once, split
from omnizip_jax.types import EncodedWindow, Selection, VisionFeatures


class ModalitySelection(NamedTuple):
    """What a method chose of one modality.

    Attributes:
        keep: tokens that stay.
        scores: what ranks them inside a window or a grid; None: all alike.
        tokens: the embeddings, where some are replaced.
        salient: those that stay for their own sake; None: all that stay.
    """

    keep: Bool[Array, "W *n"]
    scores: Float[Array, "W *n"] | None = None
    tokens: Float[Array, "W *n D"] | None = None
    salient: Bool[Array, "W *n"] | None = None


def top_part(
    scores: Float[Array, "W *n"], mask: Bool[Array, "W *n"], count: Array
) -> ModalitySelection:
    """The ``count`` valid tokens with the highest scores of the clip; ties go to the earlier."""
    keep = top_mask(scores.reshape(-1), mask.reshape(-1), count).reshape(mask.shape)
    return ModalitySelection(keep, scores)


def vision_of(windows: EncodedWindow) -> VisionFeatures:
    """What the vision encoder's last block attends to.

    Raises:
        ValueError: the windows were encoded without it.
    """
    if windows.vision is None:
        raise ValueError(
            "the method needs what the vision encoder's last block attends to: encode with "
            "wants=method.wants"
        )
    return windows.vision


def join(windows: EncodedWindow, audio: ModalitySelection, video: ModalitySelection) -> Selection:
    """The selection that two parts make."""

    def order(part, mask):
        if part.scores is None:
            return None
        rows = part.scores.reshape(-1, mask.shape[-1]), mask.reshape(-1, mask.shape[-1])
        return jax.vmap(salience_order)(*rows).reshape(mask.shape)

    audio_mask, video_mask = windows.audio.token_mask, windows.video_mask
    return Selection.of(
        audio_mask,
        video_mask,
        audio.keep,
        video.keep,
        audio=audio.tokens,
        video=video.tokens,
        audio_salient=audio.salient,
        audio_order=order(audio, audio_mask),
        video_order=order(video, video_mask),
    )


class PerModality(Share):
    """A method that chooses a given number of the audio tokens and a given number of the video's.

    Subclasses write ``sound`` and ``picture``, and may change the counts that they keep by
    themselves. Those whose choice in a window does not depend on others say that they can follow a
    stream (``streams``), and hold their counts at every moment of it.
    """

    def sound(
        self, windows: EncodedWindow, count: Int[Array, ""], key: PRNGKeyArray
    ) -> ModalitySelection:
        """``count`` of the audio tokens of a clip."""
        raise NotImplementedError

    def picture(
        self,
        windows: EncodedWindow,
        count: Int[Array, ""],
        key: PRNGKeyArray,
        audio_keep: Bool[Array, "W A"],
    ) -> ModalitySelection:
        """``count`` of the video tokens of a clip.

        Args:
            audio_keep: audio tokens that stay, for methods that let the sound guide the picture.
        """
        raise NotImplementedError

    def anchors(self, audio_mask: Bool[Array, "W A"]) -> Int[Array, ""] | int:
        """Audio tokens that ``sound`` keeps in any case."""
        return 0

    def counts(self, windows: EncodedWindow) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """The audio and video tokens to keep by the method's own settings."""
        raise NotImplementedError

    def select(self, windows: EncodedWindow, key: PRNGKeyArray) -> Selection:
        audio_mask, video_mask = windows.audio.token_mask, windows.video_mask
        if self.keep is None:
            return self.choose(windows, *self.counts(windows), key)
        audio, video = jnp.sum(audio_mask), jnp.sum(video_mask)
        total = self.kept(audio + video, audio_mask.size + video_mask.size)
        return self.choose_share(windows, total, key)

    def choose(
        self, windows: EncodedWindow, audio: Array, video: Array, key: PRNGKeyArray
    ) -> Selection:
        """A given number of each modality."""
        of_audio, of_video = jax.random.split(key)
        sound = self.sound(windows, audio, of_audio)
        return join(windows, sound, self.picture(windows, video, of_video, sound.keep))

    def choose_share(
        self, windows: EncodedWindow, total: Int[Array, ""], key: PRNGKeyArray
    ) -> Selection:
        """``total`` tokens, split over sound and picture as the paper's settings do (``split``)."""
        mask = windows.audio.token_mask
        audio = split(total, jnp.sum(mask), jnp.sum(windows.video_mask), self.anchors(mask))
        return self.choose(windows, audio, total - audio, key)


@dataclasses.dataclass(frozen=True)
class Rates(PerModality):
    """Parts set by a rate each.

    Args:
        rho_audio, rho_video: share of the tokens to discard, met exactly (half to even).

    Raises:
        ValueError: not a share.
    """

    rho_audio: float = 0.45
    rho_video: float = 0.45

    def __post_init__(self):
        super().__post_init__()
        for rate in ("rho_audio", "rho_video"):
            check_share(f"{type(self).__name__}.{rate}", getattr(self, rate))

    @property
    def shares(self) -> tuple[Fraction, Fraction]:
        """Kept shares of audio and video."""
        return 1 - as_fraction(self.rho_audio), 1 - as_fraction(self.rho_video)

    def counts(self, windows: EncodedWindow) -> tuple[Int[Array, ""], Int[Array, ""]]:
        def kept(share, mask):
            return lookup(partial(round_share, share), jnp.sum(mask), mask.size)

        audio, video = self.shares
        return kept(audio, windows.audio.token_mask), kept(video, windows.video_mask)

    def bound(self, audio_counts: Counts, video_counts: Counts) -> int:
        """Exact."""
        if self.keep is not None:
            return self.kept_on_host(audio_counts, video_counts)
        audio, video = self.shares
        kept = round_share(audio, np.sum(audio_counts)) + round_share(video, np.sum(video_counts))
        return int(kept)

    def step_bound(self, audio_slots: int, video_slots: int) -> int:
        """A running share takes at most one token more than the share of a window."""
        if self.keep is not None:
            return most_at_once(as_fraction(self.keep), audio_slots + video_slots)
        audio, video = self.shares
        return most_at_once(audio, audio_slots) + most_at_once(video, video_slots)

    def begin(self, window: EncodedWindow) -> tuple[RunningShare, RunningShare]:
        if not self.streams:
            return super().begin(window)
        return RunningShare.even(), RunningShare.even()

    def step(
        self,
        state: tuple[RunningShare, RunningShare],
        window: EncodedWindow,
        key: PRNGKeyArray,
    ) -> tuple[tuple[RunningShare, RunningShare], Selection]:
        clip = jax.tree.map(lambda x: x[None], window)
        audio, video = jnp.sum(window.audio.token_mask), jnp.sum(window.video_mask)
        of_first, of_video = state
        if self.keep is not None:  # one balance for all tokens
            of_first, total = of_first.advance(audio + video, as_fraction(self.keep))
            chosen = self.choose_share(clip, total, key)
        else:
            of_first, audio = of_first.advance(audio, self.shares[0])
            of_video, video = of_video.advance(video, self.shares[1])
            chosen = self.choose(clip, audio, video, key)
        return (of_first, of_video), jax.tree.map(lambda x: x[0], chosen)


@dataclasses.dataclass(frozen=True)
class UniformShare(Rates):
    """With ``keep`` both modalities keep that share, and not what the paper's line gives them."""

    def choose_share(self, windows, total, key):
        mask = windows.audio.token_mask
        audio = self.kept(jnp.sum(mask), mask.size)
        return self.choose(windows, audio, total - audio, key)


@dataclasses.dataclass(frozen=True)
class SalientSound(Rates):
    """What methods made for the picture do about the sound: OmniZip's ranking, without anchors.

    The audio tokens with the highest attention scores (eq. 2) of the clip stay. A sound that stays
    whole is not ranked.
    """

    def sound(self, windows, count, key):
        audio = windows.audio
        if self.keep is None and self.rho_audio == 0:
            return ModalitySelection(audio.token_mask)
        scores = attention_scores(audio.queries, audio.keys, audio.frame_mask)
        return top_part(scores, audio.token_mask, count)
