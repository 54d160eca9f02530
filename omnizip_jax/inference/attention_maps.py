"""Attention maps: attention of the last token of a prompt, layer by layer.

The prompt is prefilled as in ``generate``. Its last token then passes the layers once more, over
the keys in the cache: one row of attention a layer, no matrix.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from omnizip_jax.compression import Method
from omnizip_jax.compression.decoder_stages import Stage
from omnizip_jax.compression.method import Budget, Counts
from omnizip_jax.inference.inputs import UserTurn
from omnizip_jax.inference.prefill import prefill_turn
from omnizip_jax.inference.sequence import geometry, slot_order, slots_of, token_counts
from omnizip_jax.media import Clip
from omnizip_jax.models.backend import Backend, jax_defaults
from omnizip_jax.models.decoder import KVCache
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.models.registry import Config, family
from omnizip_jax.types import EncodedWindow, Selection, TokenKind


@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """Attention of the last token of a prompt, mean over the heads of every layer.

    Attributes:
        media: to each token of the clip, in the order of the prompt; NaN where the layer does not
            process it. A row and its value of ``text`` sum to 1.
        text: to all tokens of text together.
        kind: ``TokenKind`` of each token of the clip.
        window: the window that it belongs to.
        seconds: length of a window.
    """

    media: Float[np.ndarray, "L N"]
    text: Float[np.ndarray, " L"]
    kind: Int[np.ndarray, " N"]
    window: Int[np.ndarray, " N"]
    seconds: int


@jax_defaults()
def compute_attention_maps(
    params: Params, clip: Clip, question: str, method: Method, *, seed: int = 0
) -> AttentionMaps:
    """Attention of the last token before the answer to the tokens of a clip, under a method.

    Args:
        seed: of methods that sample randomly.

    Raises:
        ValueError: as ``generate``.
    """
    config = params.config
    turn = UserTurn.of(params, [clip, question])
    wrapped = _KeepsAllKeys(method)
    context, _, _ = prefill_turn(params, turn, wrapped, 1, question=True, seed=seed)
    cache, trace = context.cache, context.trace
    assert trace is not None
    last = turn.question
    rows = _rows(
        params.weights,
        cache if isinstance(cache, tuple) else (cache,),
        jnp.asarray(last.tokens[-1:], jnp.int32),
        context.state.after + int(last.offsets[-1]),
        config=config,
        dtype=params.dtype,
        backend=context.prefill_config.backend,
    )
    before = len(turn.texts[0].tokens) + len(context.prefill_config.markers)
    slots, kind, window = _tokens(clip, config)
    shares = np.asarray(slots_of(*map(jnp.asarray, reversed(layer_shares(trace)))))
    depth = np.rint(shares[slots] * config.text.layers)
    media, text, first = [], [], 0
    for row in map(np.asarray, rows):
        read = depth > first
        part = np.full((len(row), len(depth)), np.nan, np.float32)
        part[:, read] = row[:, before : before + read.sum()]
        media.append(part)
        text.append(row.sum(1) - np.nansum(part, 1))
        first += len(row)
    media, text = np.concatenate(media), np.concatenate(text)
    return AttentionMaps(media, text, kind, window, clip.spec.seconds)


def layer_shares(trace: Selection) -> tuple[Float[np.ndarray, "W A"], Float[np.ndarray, "W G P"]]:
    """Share of the decoder's layers that process each audio and video token."""
    audio = trace.audio_keep if trace.audio_depth is None else trace.audio_depth
    video = trace.video_keep if trace.video_depth is None else trace.video_depth
    return np.asarray(audio, np.float32), np.asarray(video, np.float32)


@dataclasses.dataclass(frozen=True)
class _KeepsAllKeys(Method):
    """A method whose stages do not prune the keys of earlier layers."""

    inner: Method

    @property
    def wants(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.wants

    def stages(self, layers: int) -> tuple[Stage, ...]:
        stages = self.inner.stages(layers)
        return tuple(dataclasses.replace(stage, prunes_past=False) for stage in stages)

    def plan(self, audio_counts: Counts, video_counts: Counts) -> Budget:
        return self.inner.plan(audio_counts, video_counts)

    def select(self, windows: EncodedWindow, budget: Budget, key: PRNGKeyArray) -> Selection:
        return self.inner.select(windows, budget, key)


def _tokens(
    clip: Clip, config: Config
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """The slot of each token of a clip in the order of the prompt, its kind and its window."""
    windows, spec = clip.windows, clip.spec
    count = len(windows.mel_length)
    audio, _ = token_counts(windows, config)
    cells = np.asarray(windows.grid_size).prod(1)[:, None, None]
    video_mask = np.asarray(windows.grid_mask)[..., None] & (np.arange(spec.grid_slots) < cells)
    audio_mask = np.arange(spec.audio_slots) < audio[:, None]
    exists = np.asarray(slots_of(*map(jnp.asarray, (video_mask, audio_mask))))
    order = slot_order(geometry(windows), spec.grid_slots, spec.audio_slots, config)
    slots = np.arange(len(exists)) if order is None else np.asarray(order)
    slots = slots[exists[slots]]
    kind = np.tile(
        np.repeat([TokenKind.VIDEO, TokenKind.AUDIO], [spec.video_slots, spec.audio_slots]), count
    )
    window = np.repeat(np.arange(count), spec.slots)
    return slots, kind[slots], window[slots]


@functools.partial(jax.jit, static_argnames=("config", "dtype", "backend"))
def _rows(
    weights: Any,
    cache: tuple[KVCache, ...],
    token: Int[Array, " 1"],
    position: Int[Array, ""],
    *,
    config: Config,
    dtype: np.dtype,
    backend: Backend,
) -> tuple[Float[Array, "L S"], ...]:
    """Attention of the prompt's last token, whose keys are in the cache already."""
    decoder = family(config).bound_decoder(weights, config, dtype, backend)
    past = tuple(segment.replace(length=segment.length - 1) for segment in cache)
    positions = jnp.broadcast_to(position, (3, 1))
    return decoder.attention_to_cache(decoder.embed(token), positions, past)
