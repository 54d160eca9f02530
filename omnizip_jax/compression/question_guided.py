"""A method before the decoder, then a selection by the question inside the decoder."""

from __future__ import annotations

import dataclasses

from omnizip_jax.compression.decoder_stages import (
    PUBLISHED_LAYERS,
    Stage,
    check_after,
    stage_layer,
)
from omnizip_jax.compression.fastv import AttentionStage
from omnizip_jax.compression.method import Method, check_shares
from omnizip_jax.compression.surprise import Surprise


@dataclasses.dataclass(frozen=True)
class QuestionGuided(Method):
    """A method that does not see the question keeps more than the share; after half of the layers
    the tokens are kept that the question attends to most, as in ``FastV``.

    >>> QuestionGuided(keep=0.25)  # Surprise keeps 35 %, and 43 % of these after layer 14 of 28

    Args:
        base: the method before the decoder; ``keep`` replaces its own settings of counts.
        after: layers before the selection in a decoder of 28; other depths in proportion.
        ratio: share that ``base`` keeps in units of ``keep``; at most everything is kept.
        keep: kept share of all media tokens, averaged over the layers. None: ``base`` keeps what
            its own settings give, and half of that is kept after the stage.

    Raises:
        ValueError: not a share, a number of layers or a ratio out of range, or a method with stages
            of its own or without ``keep``; from ``stages``, a share that the layers before the
            stage alone exceed, or a decoder too shallow for ``after``.
    """

    base: Method = dataclasses.field(default_factory=Surprise)
    after: int = 14
    ratio: float = 1.4
    keep: float | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_after("QuestionGuided.after", self.after)
        if self.ratio < 1:
            raise ValueError(f"QuestionGuided.ratio must be at least 1, got {self.ratio}")
        if self.base.stages(PUBLISHED_LAYERS):
            raise ValueError(
                "QuestionGuided.base must select before the decoder alone, such as Surprise(); "
                f"{self.base!r} has stages inside it, which would be lost"
            )
        check_shares(self, "keep")
        if self.keep is not None and not hasattr(self.base, "keep"):
            raise ValueError(
                "QuestionGuided(keep=...) needs a method with keep, such as Surprise(); got "
                f"{self.base!r}"
            )

    @property
    def wants(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.base.wants

    @property
    def entering(self) -> float:
        """Share of the tokens that enters the decoder under ``keep``."""
        assert self.keep is not None
        return min(1.0, self.ratio * self.keep)

    @property
    def before_decoder(self) -> Method:
        """``base`` at its share."""
        if self.keep is None:
            return self.base
        return dataclasses.replace(self.base, **{"keep": self.entering})

    def plan(self, audio_counts, video_counts):
        return self.before_decoder.plan(audio_counts, video_counts)

    def select(self, windows, budget, key):
        return self.before_decoder.select(windows, budget, key)

    def stages(self, layers: int) -> tuple[Stage, ...]:
        after = stage_layer("QuestionGuided.after", self.after, layers)
        if self.keep is None:
            return (AttentionStage(after, media=0.5),)
        rest = (self.keep * layers - self.entering * after) / (layers - after)
        if rest < 0:
            raise ValueError(
                f"QuestionGuided keeps {self.entering:.0%} in {after} of {layers} layers, which "
                f"alone is more than {self.keep:.0%} on average: take a smaller `ratio` or `after`"
            )
        return (AttentionStage(after, media=min(rest / max(self.entering, 1e-9), 1.0)),)
