"""Two choices after one another: a method's before the decoder, the question's inside it."""

from __future__ import annotations

import dataclasses

from jaxtyping import PRNGKeyArray

from omnizip_jax.compression.fastv import LAYERS, AttentionStage, finished
from omnizip_jax.compression.method import Counts
from omnizip_jax.compression.share import Share
from omnizip_jax.compression.stages import Stage
from omnizip_jax.compression.surprise import Surprise
from omnizip_jax.types import EncodedWindow, Selection


@dataclasses.dataclass(frozen=True)
class QuestionGuided(Share):
    """A method that knows no question keeps some more, and after half of the layers the question
    decides what goes on: the tokens that it attends to most, as in ``FastV``.

    >>> Questioned(keep=0.25)  # Surprise keeps 35 %, of which 43 % go on after layer 14 of 28

    Args:
        before: the method; with ``keep`` its own settings of how much stays give way.
        after: finished layers of 28; other depths in proportion.
        more: times its share that ``before`` keeps, at most everything.
        keep: kept share of all media tokens, averaged over the layers. None: what ``before`` keeps
            by its own settings, and half of that after the stage.

    Raises:
        ValueError: not a share, a number of layers or times that cannot be, or a method with
            stages of its own; from ``stages``, more than the share before the stage alone.
    """

    before: Share = dataclasses.field(default_factory=Surprise)
    after: int = 14
    more: float = 1.4

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.after < LAYERS:
            raise ValueError(f"Questioned.after must be from 1 to {LAYERS - 1}, got {self.after}")
        if self.more < 1:
            raise ValueError(f"Questioned.more must be at least 1, got {self.more}")
        if self.before.stages(LAYERS):
            raise ValueError(
                "Questioned.before must choose before the decoder alone, such as Surprise(); "
                f"{self.before!r} has stages inside it, which would be lost"
            )

    @property
    def wants(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.before.wants

    @property
    def outside(self) -> Share:
        """The method before the decoder, at its share."""
        if self.keep is None:
            return self.before
        return dataclasses.replace(self.before, keep=min(1.0, self.more * self.keep))

    def bound(self, audio_counts: Counts, video_counts: Counts) -> int:
        return self.outside.bound(audio_counts, video_counts)

    def select(self, windows: EncodedWindow, key: PRNGKeyArray) -> Selection:
        return self.outside.select(windows, key)

    def stages(self, layers: int) -> tuple[Stage, ...]:
        after = finished(self.after, layers)
        if self.keep is None:
            return (AttentionStage(after, media=0.5),)
        enters = self.outside.keep or 1.0
        rest = (self.keep * layers - enters * after) / (layers - after)
        if rest < 0:
            raise ValueError(
                f"Questioned keeps {enters:.0%} in {after} of {layers} layers, which alone is more "
                f"than {self.keep:.0%} on average: take a smaller `more` or `after`"
            )
        return (AttentionStage(after, media=min(rest / max(enters, 1e-9), 1.0)),)
