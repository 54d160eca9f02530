"""What an answer cost: shares of tokens, operations by three counts, bytes of the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from omnizip_jax.compression import Method
from omnizip_jax.evaluation import operations
from omnizip_jax.inference.generation import TokenCounts
from omnizip_jax.models.config import TextConfig
from omnizip_jax.types import Selection


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the decoder read, computed and remembers of one prompt.

    Shares of a modality that a clip lacks are 1. Encoders, and what a method spends on choosing,
    are left out.

    Attributes:
        audio, video, kept: shares of the sound, of the picture and of both that enter the decoder.
        kept_with_text: the same share of the whole prompt.
        audio_by_layer, video_by_layer, by_layer, by_layer_with_text: these shares averaged over
            the layers; where no stage reduces inside the decoder, the same numbers.
        tokens: of the prompt in each layer, text included.
        operations: true count of the prefill: grouped-query and causal attention, three SwiGLU
            matrices, text included, the logits of the first token; a multiply-add is two.
        paper_operations: the paper's eq. 9: media tokens alone, 100 decoded tokens.
        cache_bytes: keys and values of the prompt when it has been read, without free slots.
    """

    audio: float
    video: float
    kept: float
    kept_with_text: float
    audio_by_layer: float
    video_by_layer: float
    by_layer: float
    by_layer_with_text: float
    tokens: tuple[int, ...]
    operations: float
    paper_operations: float
    cache_bytes: int

    @property
    def seats_operations(self) -> float:
        """As SEATS (2605.20035) counts: a multiply-add is one, the logits are in it."""
        return self.operations / 2


def cost(
    config: TextConfig,
    method: Method,
    counts: TokenCounts,
    trace: Selection | None = None,
    *,
    value_bytes: int = 2,
) -> Cost:
    """The cost of an answer of ``generate``, from what it says about itself.

    Args:
        config: sizes of the decoder, ``params.config.text``.
        method: what chose among the tokens.
        counts: the answer's.
        trace: ``answer.compression``, which methods with stages inside the decoder need.
        value_bytes: of a number in the cache; 2 for bfloat16.

    Raises:
        ValueError: a method with stages, and no trace of them.
    """
    beyond = [_beyond(stage.after, config, trace) for stage in method.stages(config.layers)]
    return cost_of(config, method, counts, beyond, value_bytes=value_bytes)


def cost_of(
    config: TextConfig,
    method: Method,
    counts: TokenCounts,
    beyond: Sequence[tuple[int, int]],
    *,
    value_bytes: int = 2,
) -> Cost:
    """``cost`` where what went on after each of the method's stages was counted.

    Args:
        beyond: audio and video tokens, a pair for each stage.
    """
    media = np.tile([counts.audio_kept, counts.video_kept], (config.layers, 1))
    cached = media.copy()
    for stage, left in zip(method.stages(config.layers), beyond, strict=True):
        media[stage.after :] = cached[stage.after :] = left
        if stage.prunes_past:
            cached[: stage.after] = left
    tokens = tuple((media.sum(1) + counts.text).tolist())
    remembered = (cached.sum(1) + counts.text).tolist()

    def shares(audio: float, video: float) -> tuple[float, float, float, float]:
        kept, text = audio + video, counts.text
        return (
            _share(audio, counts.audio),
            _share(video, counts.video),
            _share(kept, counts.media),
            _share(kept + text, counts.media + text),
        )

    return Cost(
        *shares(counts.audio_kept, counts.video_kept),
        *shares(*media.mean(0).tolist()),
        tokens=tokens,
        operations=operations.prefill_operations(config, tokens),
        paper_operations=operations.paper_operations(config, media.sum(1).tolist()),
        cache_bytes=operations.cache_values(config, remembered) * value_bytes,
    )


def _beyond(layer: int, config: TextConfig, trace: Selection | None) -> tuple[int, int]:
    """Audio and video tokens that the layers after the first so many read."""
    if trace is None or trace.audio_depth is None or trace.video_depth is None:
        raise ValueError(
            "the method reduces inside the decoder, and the trace does not say when tokens left: "
            "take the compression of an answer that the method led to"
        )
    audio, video = (
        int(np.sum(np.rint(np.asarray(depth) * config.layers) > layer))
        for depth in (trace.audio_depth, trace.video_depth)
    )
    return audio, video


def without_compression(counts: TokenCounts) -> TokenCounts:
    """The counts of the same prompt if all of its tokens were read."""
    return dataclasses.replace(counts, audio_kept=counts.audio, video_kept=counts.video)


def _share(part: float, whole: int) -> float:
    return part / whole if whole else 1.0
