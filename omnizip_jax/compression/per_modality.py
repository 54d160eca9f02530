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
    namespace,
    nearest,
    round_share,
    running_share_bound,
    salient_share,
    top_mask,
)
from omnizip_jax.compression.decoder_stages import PUBLISHED_LAYERS
from omnizip_jax.compression.method import Budget, Count, Counts, Method, check_shares
from omnizip_jax.compression.omnizip_audio import attention_scores
from omnizip_jax.types import EncodedWindow, Selection, VisionFeatures

Shares = tuple[RunningShare, RunningShare]  # state of a stream


class ModalitySelection(NamedTuple):
    """Selected tokens of one modality.

    Attributes:
        keep: tokens to keep.
        tokens: the embeddings, if some are replaced.
        salient: kept audio tokens that are not anchors; None: all kept tokens.
    """

    keep: Bool[Array, "W *n"]
    tokens: Float[Array, "W *n D"] | None = None
    salient: Bool[Array, "W *n"] | None = None


def select_top(
    scores: Float[Array, "W *n"], mask: Bool[Array, "W *n"], count: Count
) -> ModalitySelection:
    """The ``count`` valid tokens with the highest scores of the clip; ties go to the earlier."""
    return ModalitySelection(top_mask(scores, mask, count))


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
    return Selection.of(
        windows.audio.token_mask,
        windows.video_mask,
        audio.keep,
        video.keep,
        audio=audio.tokens,
        video=video.tokens,
        audio_salient=audio.salient,
    )


@dataclasses.dataclass(frozen=True)
class PerModality(Method):
    """Selection of a given number of audio tokens and a given number of video tokens.

    Subclasses write ``select_audio``, ``select_video`` and ``own_budget``, and those that follow a
    stream ``step_counts``; their selection in a window does not depend on other windows.

    Args:
        keep: kept share of all media tokens of a clip, met exactly (half to even); it replaces the
            settings that say how much of each modality is kept. None: those settings apply.
        split: division of ``keep`` between the modalities: "paper", along the line through the
            paper's two settings (``counts.salient_share``), or "uniform", the same share of both.

    Raises:
        ValueError: ``keep`` is not a share; an unknown ``split``.
    """

    splits: ClassVar[tuple[str, ...]] = ("paper", "uniform")

    keep: float | None = dataclasses.field(default=None, kw_only=True)
    split: str = dataclasses.field(default="paper", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_shares(self, "keep")
        if self.split not in self.splits:
            raise ValueError(
                f"{type(self).__name__}.split must be one of {', '.join(self.splits)}, got "
                f"{self.split!r}"
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

    def own_budget(self, audio_counts: Counts, video_counts: Counts) -> Budget:
        """Tokens that the method keeps of a clip without ``keep``."""
        raise NotImplementedError

    def step_counts(self, shares: Shares, audio: Count, video: Count) -> tuple[Shares, Budget]:
        """Tokens to keep of a stream's window unless the modalities have one running share."""
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
            return self.own_budget(audio_counts, video_counts).as_ints()
        audio, video = np.sum(audio_counts), np.sum(video_counts)
        total = round_share(self.kept_share, audio + video)
        anchors = self.anchor_total(audio_counts)
        if total < anchors:
            raise ValueError(
                f"keep {self.keep} of {audio + video} tokens is less than the {anchors} audio "
                f"anchors: keep at least {int(anchors) / int(audio + video):.3f}, or no anchors "
                "(merge_size=0)"
            )
        return self.divided(total, audio, video, anchors).as_ints()

    def divided(self, total: Any, audio: Any, video: Any, anchors: Any = 0) -> Budget:
        """``total`` tokens divided between the modalities, on the host or on the device.

        Where a modality has fewer tokens than its part, the other gets the difference. Anchors are
        always kept.
        """
        if self.split == "uniform":
            part = round_share(self.kept_share, audio)
        else:
            part = nearest(salient_share(total, audio, video, anchors, self.gap) * audio) + anchors
        xp = namespace(audio)
        least, most = xp.maximum(total - video, anchors), xp.minimum(total, audio)
        part = xp.clip(part, least, xp.maximum(most, least))
        return Budget(part, total - part, total, anchors)

    def select(self, windows: EncodedWindow, budget: Budget, key: PRNGKeyArray) -> Selection:
        audio_key, video_key = jax.random.split(key)
        audio = self.select_audio(windows, budget.audio, audio_key)
        video = self.select_video(windows, budget.video, video_key, audio.keep)
        return join(windows, audio, video)

    @property
    def one_share(self) -> bool:
        """Whether a stream holds one share of all tokens and not one of each modality."""
        return self.keep is not None and self.split != "uniform"

    def begin(self, window: EncodedWindow) -> Any:
        if not self.streams:
            return super().begin(window)
        return RunningShare.initial(), RunningShare.initial()

    def step(self, state: Any, window: EncodedWindow, key: PRNGKeyArray) -> tuple[Any, Selection]:
        audio, video = jnp.sum(window.audio.token_mask), jnp.sum(window.video_mask)
        if self.one_share:
            share, total = state[0].advance(audio + video, self.kept_share)
            state, budget = (share, state[1]), self.divided(total, audio, video)
        else:
            state, budget = self.step_counts(state, audio, video)
        selection = self.select(jax.tree.map(lambda x: x[None], window), budget, key)
        return state, jax.tree.map(lambda x: x[0], selection)


@dataclasses.dataclass(frozen=True)
class Rates(PerModality):
    """A method with one pruning rate per modality; audio tokens are ranked by attention (eq. 2).

    Counts of a stream hold after every window.

    Args:
        rho_audio, rho_video: share of the tokens to discard, met exactly (half to even).

    Raises:
        ValueError: not a share.
    """

    rho_audio: float = 0.45
    rho_video: float = 0.45

    def __post_init__(self):
        super().__post_init__()
        check_shares(self, "rho_audio", "rho_video")

    @property
    def shares(self) -> tuple[Fraction, Fraction]:
        """Kept shares of audio and video where each is met by itself."""
        if self.keep is not None:
            return self.kept_share, self.kept_share
        return 1 - as_fraction(self.rho_audio), 1 - as_fraction(self.rho_video)

    def own_budget(self, audio_counts: Counts, video_counts: Counts) -> Budget:
        audio, video = self.shares
        kept_audio = round_share(audio, np.sum(audio_counts))
        return Budget.of(kept_audio, round_share(video, np.sum(video_counts)))

    def select_audio(self, windows, count, key):
        """OmniZip's ranking without anchors; audio that is kept whole is not ranked."""
        audio = windows.audio
        if self.keep is None and self.rho_audio == 0:
            return ModalitySelection(audio.token_mask)
        frames = audio.queries, audio.keys, audio.frame_mask
        scores = attention_scores(*frames, audio.token_mask.shape[-1])
        return select_top(scores, audio.token_mask, count)

    def step_bound(self, audio_slots: int, video_slots: int) -> int:
        """A running share keeps at most one token more than the share of a window."""
        if self.one_share:
            return running_share_bound(self.kept_share, audio_slots + video_slots)
        audio, video = self.shares
        return running_share_bound(audio, audio_slots) + running_share_bound(video, video_slots)

    def step_counts(self, shares: Shares, audio: Count, video: Count) -> tuple[Shares, Budget]:
        first, audio = shares[0].advance(audio, self.shares[0])
        second, video = shares[1].advance(video, self.shares[1])
        return (first, second), Budget.of(audio, video)


@dataclasses.dataclass(frozen=True)
class Mixed(PerModality):
    """The audio selection of one method and the video selection of another (paper, Table 4).

    A video selection that depends on the audio (OmniZip's) uses the audio selected here. Without
    ``keep``, each method keeps the number of tokens of its modality that its own rates give.

    Raises:
        ValueError: a part with ``keep``, a share of the tokens of both modalities; with stages
            inside the decoder; or causal.

    >>> Mixed(audio=RandomTokens(rho_audio=0.25), video=OmniZipConfig())  # Table 4, row 1
    >>> Mixed(audio=OmniZipConfig(), video=VisionZip(), keep=0.45)  # row 3
    """

    audio: PerModality
    video: PerModality

    def __post_init__(self):
        super().__post_init__()
        for name, part in (("audio", self.audio), ("video", self.video)):
            if part.keep is not None:
                raise ValueError(
                    f"Mixed.{name} has keep={part.keep}, a share of the tokens of both modalities: "
                    "set the mixture's own keep, or the rates of the part"
                )
            if part.stages(PUBLISHED_LAYERS) or getattr(part, "causal", False):
                raise ValueError(
                    f"Mixed.{name} must select the tokens of a whole clip before the decoder; "
                    f"{part!r} has stages inside it, or is causal, which would be lost"
                )

    @property
    def wants(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.audio.wants | self.video.wants

    def own_budget(self, audio_counts, video_counts):
        audio = self.audio.plan(audio_counts, np.zeros_like(video_counts))
        video = self.video.plan(np.zeros_like(audio_counts), video_counts)
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
