"""Cost of an answer in the decoder: shares of tokens, floating-point operations, cache size.

Stages inside the decoder give every layer its own number of tokens: ``tokens`` has one entry per
layer. A multiplication and an addition are two operations unless stated otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from omnizip_jax.compression import Method
from omnizip_jax.inference.generation import TokenCounts
from omnizip_jax.models.config import TextConfig
from omnizip_jax.types import Selection

DECODED = 100  # tokens of an answer, R in the paper's eq. 9


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one prompt in the decoder, without the encoders and the method's own computation.

    Shares of a modality that a clip lacks are 1.

    Attributes:
        audio, video, kept: shares of the audio, video and all media tokens that enter the decoder.
        kept_with_text: the same share of the whole prompt.
        audio_by_layer, video_by_layer, by_layer, by_layer_with_text: these shares averaged over
            the layers; they differ for methods that prune inside the decoder.
        tokens: of the prompt in each layer, text included.
        operations: of the prefill: grouped-query and causal attention, three SwiGLU matrices,
            text included, the logits of the first token.
        paper_operations: the paper's eq. 9: media tokens alone, 100 decoded tokens.
        cache_bytes: keys and values of the prompt after the prefill, without free slots.
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
        """As SEATS (2605.20035) counts: a multiply-add is one operation; logits included."""
        return self.operations / 2

    def columns(self) -> dict[str, Any]:
        """The cost as the results have it: all but ``tokens``, with ``seats_operations``."""
        columns = dataclasses.asdict(self) | {"seats_operations": self.seats_operations}
        del columns["tokens"]
        return columns


def cost(
    config: TextConfig,
    method: Method,
    counts: TokenCounts,
    trace: Selection | None = None,
    *,
    value_bytes: int = 2,
) -> Cost:
    """The cost of an answer of ``generate``.

    Args:
        config: sizes of the decoder, ``params.config.text``.
        method: of the answer.
        counts: ``answer.counts``.
        trace: ``answer.compression``; needed if the method has stages inside the decoder.
        value_bytes: size of a number in the cache; 2 for bfloat16.

    Raises:
        ValueError: a method with stages, and no trace of them.
    """
    stages = method.stages(config.layers)
    kept = [_kept_after(stage.after, config, trace) for stage in stages]
    return cost_of(config, method, counts, kept, value_bytes=value_bytes)


def cost_of(
    config: TextConfig,
    method: Method,
    counts: TokenCounts,
    kept_after_stages: Sequence[tuple[int, int]],
    *,
    value_bytes: int = 2,
) -> Cost:
    """``cost`` from the numbers of audio and video tokens that each stage of the method keeps."""
    media = np.tile([counts.audio_kept, counts.video_kept], (config.layers, 1))
    cached = media.copy()
    for stage, kept in zip(method.stages(config.layers), kept_after_stages, strict=True):
        media[stage.after :] = cached[stage.after :] = kept
        if stage.prunes_past:
            cached[: stage.after] = kept
    tokens = tuple((media.sum(1) + counts.text).tolist())

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
        operations=prefill_operations(config, tokens),
        paper_operations=paper_operations(config, media.sum(1).tolist()),
        cache_bytes=cache_values(config, (cached.sum(1) + counts.text).tolist()) * value_bytes,
    )


def without_compression(counts: TokenCounts) -> TokenCounts:
    """The counts of the same prompt with all tokens kept."""
    return dataclasses.replace(counts, audio_kept=counts.audio, video_kept=counts.video)


def _kept_after(layer: int, config: TextConfig, trace: Selection | None) -> tuple[int, int]:
    """Audio and video tokens that enter the layers after the first ``layer``."""
    if trace is None or trace.audio_depth is None or trace.video_depth is None:
        raise ValueError(
            "the method prunes inside the decoder, and the trace does not say in which layers: "
            "give the compression of an answer that this method produced"
        )
    audio, video = (
        int(np.sum(np.rint(np.asarray(depth) * config.layers) > layer))
        for depth in (trace.audio_depth, trace.video_depth)
    )
    return audio, video


def _share(part: float, whole: int) -> float:
    return part / whole if whole else 1.0


def layer_weights(config: TextConfig) -> int:
    """Weights of a layer that a token uses: grouped-query attention, three SwiGLU matrices."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return config.hidden * (2 * queries + 2 * keys + 3 * _ffn(config) + config.experts)


def _ffn(config: TextConfig) -> int:
    """Width of the feed-forward network, or of the experts of a token together."""
    return config.experts_per_token * config.expert_ffn if config.experts else config.ffn


def prefill_operations(config: TextConfig, tokens: Sequence[int]) -> float:
    """Operations of a prefill with causal attention, text and the first token's logits included."""
    pairs = sum(count * (count + 1) / 2 for count in tokens)
    attention = 4.0 * pairs * config.heads * config.head_dim  # scores, and the sum of the values
    layers = 2.0 * layer_weights(config) * sum(tokens) + attention
    return layers + 2.0 * config.hidden * config.vocabulary


def paper_operations(config: TextConfig, tokens: Sequence[int], decoded: int = DECODED) -> float:
    """The paper's eq. 9 over the media tokens: full attention, two matrices in the network.

    ``4 n d^2 + 2 n^2 d + 2 n d m`` per layer, and ``4 d^2 + 2 d m + 2 d (n + i)`` for the i-th of
    ``decoded`` tokens; a multiply-add is one operation.

    Args:
        tokens: media tokens in each layer.
    """
    d, m = config.hidden, _ffn(config)
    matrices = 4.0 * d**2 + 2.0 * d * m
    prefill = sum(n * matrices + 2.0 * n**2 * d for n in tokens)
    attended = sum(decoded * n + decoded * (decoded + 1) / 2 for n in tokens)
    return prefill + decoded * len(tokens) * matrices + 2.0 * d * attended


def cache_values(config: TextConfig, tokens: Sequence[int]) -> int:
    """Numbers in the keys and values of these tokens per layer."""
    return 2 * sum(tokens) * config.kv_heads * config.head_dim
