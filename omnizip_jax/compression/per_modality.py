"""Methods that select audio and video tokens separately, and mixtures of two such methods."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from omnizip_jax.compression.counts import (
    PAPER_GAP,
    RunningShare,
    as_fraction,
    line_count,
    round_share,
    running_share_bound,
    salience_order,
    top_mask,
    within,
)
from omnizip_jax.compression.method import (
    Budget,
    Count,
    Counts,
    Method,
    add_window_axis,
    check_share,
    drop_window_axis,
)
from omnizip_jax.compression.omnizip_audio import attention_scores
from omnizip_jax.types import EncodedWindow, Selection, VisionFeatures


class ModalitySelection(NamedTuple):
    """Selected tokens of one modality.

    Attributes:
        keep: tokens to keep.
        scores: scores that rank the tokens of a window or a grid; None: all equal.
        tokens: the embeddings, if some are replaced.
        salient: kept tokens that are not anchors; None: all kept tokens.
    """

    keep: Bool[Array, "W *n"]
    scores: Float[Array, "W *n"] | None = None
    tokens: Float[Array, "W *n D"] | None = None
    salient: Bool[Array, "W *n"] | None = None


def select_top(
    scores: Float[Array, "W *n"], mask: Bool[Array, "W *n"], count: Count
) -> ModalitySelection:
    """The ``count`` valid tokens with the highest scores of the clip; ties go to the earlier."""
    keep = top_mask(scores.reshape(-1), mask.reshape(-1), count).reshape(mask.shape)
    return ModalitySelection(keep, scores)


def vision_of(windows: EncodedWindow) -> VisionFeatures:
    """Attention and keys of the vision encoder's last block.

    Raises:
        ValueError: the windows were encoded without them.
    """
    if windows.vision is None:
        raise ValueError(
            "the method needs the attention of the vision encoder's last block: encode with "
            "wants=method.wants"
        )
    return windows.vision


def join(windows: EncodedWindow, audio: ModalitySelection, video: ModalitySelection) -> Selection:
    """Combine the selections of both modalities."""

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


@dataclasses.dataclass(frozen=True)
class PerModality(Method):
    """Selection of a given number of audio tokens and a given number of video tokens.

    Subclasses write ``select_audio``, ``select_video`` and ``own_counts``.

    Args:
        keep: kept share of all media tokens of a clip, met exactly (half to even); it replaces the
            settings that say how much of each modality is kept. None: those settings apply.
        split: division of ``keep`` between the modalities: "paper", along the line through the
            paper's two settings (``counts.line_count``), or "uniform", the same share of both.

    Raises:
        ValueError: ``keep`` is not a share; an unknown ``split``.
    """

    splits: ClassVar[tuple[str, ...]] = ("paper", "uniform")

    keep: float | None = dataclasses.field(default=None, kw_only=True)
    split: str = dataclasses.field(default="paper", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        if self.keep is not None:
            check_share(f"{name}.keep", self.keep)
        if self.split not in self.splits:
            raise ValueError(
                f"{name}.split must be one of {', '.join(self.splits)}, got {self.split!r}"
            )

    def select_audio(
        self, windows: EncodedWindow, count: Count, key: PRNGKeyArray
    ) -> ModalitySelection:
        """Select ``count`` of the audio tokens of a clip."""
        raise NotImplementedError

    def select_video(
        self,
        windows: EncodedWindow,
        count: Count,
        key: PRNGKeyArray,
        audio_keep: Bool[Array, "W A"],
    ) -> ModalitySelection:
        """Select ``count`` of the video tokens of a clip.

        Args:
            audio_keep: selected audio tokens, for methods whose video selection depends on them.
        """
        raise NotImplementedError

    def own_counts(self, audio_counts: Counts, video_counts: Counts) -> tuple[Any, Any]:
        """Audio and video tokens that the method keeps without ``keep``."""
        raise NotImplementedError

    def anchor_total(self, audio_counts: Counts) -> int:
        """Audio tokens that ``select_audio`` always keeps."""
        return 0

    @property
    def kept_share(self) -> Fraction:
        """Share of all tokens that ``keep`` leaves before the decoder."""
        assert self.keep is not None
        return as_fraction(self.keep)

    @property
    def gap(self) -> float:
        """Difference between the kept shares of audio and video under ``split="paper"``."""
        return PAPER_GAP

    def plan(self, audio_counts: Counts, video_counts: Counts) -> Budget:
        if self.keep is None:
            return Budget.of(*self.own_counts(audio_counts, video_counts)).as_ints()
        audio, video = np.sum(audio_counts), np.sum(video_counts)
        total = round_share(self.kept_share, audio + video)
        return self.divided(total, audio, video, self.anchor_total(audio_counts)).as_ints()

    def divided(self, total: Any, audio: Any, video: Any, anchors: Any = 0) -> Budget:
        """``total`` tokens divided between the modalities, on the host or on the device."""
        if self.split == "uniform":
            part = round_share(self.kept_share, audio)
        else:
            part = line_count(total, audio, video, anchors, self.gap)
        part = within(part, total, audio, video, anchors)
        return Budget(part, total - part, total, anchors)

    def select(self, windows: EncodedWindow, budget: Budget, key: PRNGKeyArray) -> Selection:
        audio_key, video_key = jax.random.split(key)
        audio = self.select_audio(windows, budget.audio, audio_key)
        video = self.select_video(windows, budget.video, video_key, audio.keep)
        return join(windows, audio, video)


@dataclasses.dataclass(frozen=True)
class Rates(PerModality):
    """A method with one pruning rate per modality; audio tokens are ranked by attention (eq. 2).

    A subclass whose selection in a window does not depend on other windows sets ``streams``; its
    counts then hold after every window of a stream.

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
        """Kept shares of audio and video where each is met by itself."""
        if self.keep is not None:
            return self.kept_share, self.kept_share
        return 1 - as_fraction(self.rho_audio), 1 - as_fraction(self.rho_video)

    @property
    def _shared(self) -> bool:
        """Whether a stream holds one share of all tokens and not one of each modality."""
        return self.keep is not None and self.split != "uniform"

    def own_counts(self, audio_counts: Counts, video_counts: Counts) -> tuple[Any, Any]:
        audio, video = self.shares
        return (
            round_share(audio, np.sum(audio_counts)),
            round_share(video, np.sum(video_counts)),
        )

    def select_audio(
        self, windows: EncodedWindow, count: Count, key: PRNGKeyArray
    ) -> ModalitySelection:
        """OmniZip's ranking without anchors; audio that is kept whole is not ranked."""
        audio = windows.audio
        if self.keep is None and self.rho_audio == 0:
            return ModalitySelection(audio.token_mask)
        scores = attention_scores(audio.queries, audio.keys, audio.frame_mask)
        return select_top(scores, audio.token_mask, count)

    def step_bound(self, audio_slots: int, video_slots: int) -> int:
        """A running share keeps at most one token more than the share of a window."""
        if self._shared:
            return running_share_bound(self.kept_share, audio_slots + video_slots)
        audio, video = self.shares
        return running_share_bound(audio, audio_slots) + running_share_bound(video, video_slots)

    def begin(self, window: EncodedWindow) -> tuple[RunningShare, RunningShare]:
        if not self.streams:
            return super().begin(window)
        return RunningShare.initial(), RunningShare.initial()

    def step(
        self,
        state: tuple[RunningShare, RunningShare],
        window: EncodedWindow,
        key: PRNGKeyArray,
    ) -> tuple[tuple[RunningShare, RunningShare], Selection]:
        audio, video = jnp.sum(window.audio.token_mask), jnp.sum(window.video_mask)
        first, second = state
        if self._shared:
            first, total = first.advance(audio + video, self.kept_share)
            budget = self.divided(total, audio, video)
        else:
            first, audio = first.advance(audio, self.shares[0])
            second, video = second.advance(video, self.shares[1])
            budget = Budget.of(audio, video)
        selection = self.select(add_window_axis(window), budget, key)
        return (first, second), drop_window_axis(selection)


@dataclasses.dataclass(frozen=True)
class Mixed(PerModality):
    """The audio selection of one method and the video selection of another (paper, Table 4).

    A video selection that depends on the audio (OmniZip's) uses the audio selected here. With
    ``keep``, the ``keep`` of the two methods is ignored; without, each method keeps the number of
    tokens of its modality that its own settings give.

    >>> Mixed(audio=RandomTokens(rho_audio=0.25), video=OmniZipConfig())  # Table 4, row 1
    >>> Mixed(audio=OmniZipConfig(), video=VisionZip(), keep=0.45)  # row 3
    """

    audio: PerModality
    video: PerModality

    @property
    def wants(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.audio.wants | self.video.wants

    def plan(self, audio_counts, video_counts):
        if self.keep is not None:
            return super().plan(audio_counts, video_counts)
        audio_counts, video_counts = np.asarray(audio_counts), np.asarray(video_counts)
        audio = self.audio.plan(audio_counts, 0 * video_counts)
        video = self.video.plan(0 * audio_counts, video_counts)
        return Budget(audio.audio, video.video, audio.total + video.total, audio.anchors)

    def anchor_total(self, audio_counts: Counts) -> int:
        return self.audio.anchor_total(audio_counts)

    def select_audio(self, windows, count, key):
        method = self.audio
        if self.keep is not None:
            method = dataclasses.replace(method, keep=self.keep)
        return method.select_audio(windows, count, key)

    def select_video(self, windows, count, key, audio_keep):
        return self.video.select_video(windows, count, key, audio_keep)
