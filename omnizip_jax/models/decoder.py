"""The decoder: a Qwen2.5 or Qwen3 language model with TMRoPE and a static key-value cache.

Layers are stacked and scanned; the cache is in the scan's carry, so that XLA updates it in place.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int

from omnizip_jax.compression.decoder_stages import Stage, Tokens, check_stages, front
from omnizip_jax.models import attention, experts, rope
from omnizip_jax.models import layer_scan as layers
from omnizip_jax.models.backend import Backend, full_precision
from omnizip_jax.models.config import BaseModelConfig, TextConfig
from omnizip_jax.models.cpu_kernels import slice_layer
from omnizip_jax.models.linear import Embedding, Linear
from omnizip_jax.models.quantized import SCALE_DTYPE, QuantizedArray, is_quantized, quantize_vectors
from omnizip_jax.models.sharding import replicate

# Logical axes of the parameters that are split over devices, by the end of their path.
AXES = experts.AXES | {
    "q_proj/weight": ("heads", "embed"),
    "q_proj/bias": ("heads",),
    "k_proj/weight": ("kv_heads", "embed"),
    "k_proj/bias": ("kv_heads",),
    "v_proj/weight": ("kv_heads", "embed"),
    "v_proj/bias": ("kv_heads",),
    "o_proj/weight": ("embed", "heads"),
    "gate_proj/weight": ("ffn", "embed"),
    "up_proj/weight": ("ffn", "embed"),
    "down_proj/weight": ("embed", "ffn"),
    "embed_tokens/embedding": (None, "embedding"),
    "lm_head/weight": ("vocab", "embed"),
}
CACHE_AXES = ("layers", None, "kv_heads", None)  # of the keys and the values


class KVCache(struct.PyTreeNode):
    """Rotated keys and values of all layers, or of those between two in-decoder pruning stages.

    Attributes:
        keys, values: S slots; those from ``length`` on hold padding that the next block
            overwrites. In 8 bits each head of a slot has a scale.
        length: slots in use.
    """

    keys: Float[Array, "L S K H"] | QuantizedArray
    values: Float[Array, "L S K H"] | QuantizedArray
    length: Int[Array, ""]

    @classmethod
    def empty(
        cls,
        config: TextConfig,
        slots: int,
        dtype=jnp.float32,
        layers: int | None = None,
        sharding: Sharding | None = None,
    ) -> KVCache:
        """Allocate a cache for all layers, or for the given number of them.

        Args:
            dtype: int8 for a quantised one.
        """
        shape = (layers or config.layers, slots, config.kv_heads, config.head_dim)

        def zeros() -> Array | QuantizedArray:
            values = jnp.zeros(shape, dtype, device=sharding)
            if dtype != jnp.int8:
                return values
            scales = jnp.ones((*shape[:-1], 1), SCALE_DTYPE, device=sharding)
            return QuantizedArray(values, scales)

        return cls(zeros(), zeros(), jnp.int32(0))

    @property
    def layers(self) -> int:
        """Number of layers in the cache."""
        return self.keys.shape[0]

    def gather(self, index: Int[Array, " T"], length: Int[Array, ""], free_slots: int) -> KVCache:
        """Copy the slots at ``index``, ``length`` of them in use, followed by ``free_slots``."""
        padding = ((0, 0), (0, free_slots), (0, 0), (0, 0))
        keys, values = jax.tree.map(
            lambda x: jnp.pad(x[:, index], padding), (self.keys, self.values)
        )
        return KVCache(keys, values, length)

    def write(
        self,
        layer: Int[Array, ""] | int,
        keys: Float[Array, "T K H"],
        values: Float[Array, "T K H"],
    ) -> KVCache:
        """Write a block to one layer after the slots in use; ``advance`` then counts it."""
        start, block = (layer, self.length, 0, 0), (keys, values)
        if is_quantized(self.keys):
            block = quantize_vectors(keys), quantize_vectors(values)

        def update(old: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice(old, new[None], start)

        keys, values = jax.tree.map(update, (self.keys, self.values), block)
        return self.replace(keys=keys, values=values)

    def attend(
        self, q: Float[Array, "T N H"], layer: Int[Array, ""] | int, backend: Backend
    ) -> Float[Array, "T N H"]:
        """Attention of a written block to the slots before it and to itself."""
        return attention.attend_cached(q, self.keys, self.values, layer, self.length, backend)

    def advance(self, count: Int[Array, ""]) -> KVCache:
        """Mark ``count`` more slots as in use."""
        return self.replace(length=self.length + count)


class BatchedKVCache(struct.PyTreeNode):
    """Caches of B sequences that decode together, one token of each in a block.

    Row b of a block is the next token of sequence b. The products with the weights take all rows at
    once; each sequence writes to and attends to its own cache, which is not copied.
    """

    caches: tuple[KVCache, ...]

    @property
    def layers(self) -> int:
        """Number of layers in the caches."""
        return self.caches[0].layers

    def write(
        self,
        layer: Int[Array, ""] | int,
        keys: Float[Array, "B K H"],
        values: Float[Array, "B K H"],
    ) -> BatchedKVCache:
        """Write one row to each sequence's cache."""
        rows = zip(self.caches, keys[:, None], values[:, None], strict=True)
        return BatchedKVCache(tuple(cache.write(layer, k, v) for cache, k, v in rows))

    def attend(
        self, q: Float[Array, "B N H"], layer: Int[Array, ""] | int, backend: Backend
    ) -> Float[Array, "B N H"]:
        """Attention of each written row to its own sequence."""
        pairs = [(cache.keys, cache.values) for cache in self.caches]
        starts = jnp.stack([cache.length for cache in self.caches])
        return attention.attend_cached_batch(q, pairs, layer, starts, backend)

    def advance(self, count: Int[Array, " B"]) -> BatchedKVCache:
        """Mark ``count`` more slots of each sequence as in use."""
        pairs = zip(self.caches, count, strict=True)
        return BatchedKVCache(tuple(cache.advance(more) for cache, more in pairs))


# One segment for all layers, or several for consecutive layers, each with its own length.
Cache = KVCache | tuple[KVCache, ...]
BatchedCache = BatchedKVCache | tuple[BatchedKVCache, ...]


class Attention(nn.Module):
    """Grouped-query self-attention that writes its keys and values to the cache."""

    config: TextConfig
    dtype: jnp.dtype
    backend: Backend
    fresh: bool

    def setup(self):
        config = self.config

        def linear(features: int, use_bias: bool) -> Linear:
            return Linear(features, use_bias, self.dtype, self.backend)

        self.q_proj = linear(config.heads * config.head_dim, config.attention_bias)
        self.k_proj = linear(config.kv_heads * config.head_dim, config.attention_bias)
        self.v_proj = linear(config.kv_heads * config.head_dim, config.attention_bias)
        self.o_proj = linear(config.hidden, False)
        if config.qk_norm:
            self.q_norm, self.k_norm = (_rms_norm(config, self.dtype) for _ in range(2))

    def _heads(self, projected: Float[Array, "T NH"]) -> Float[Array, "T N H"]:
        return projected.reshape(projected.shape[0], -1, self.config.head_dim)

    def _queries(self, x, angle) -> Float[Array, "T N H"]:
        q = self._heads(self.q_proj(x))
        return rope.rotate(self.q_norm(q) if self.config.qk_norm else q, angle)

    def _keys(self, x, angle) -> Float[Array, "T K H"]:
        k = self._heads(self.k_proj(x))
        return rope.rotate(self.k_norm(k) if self.config.qk_norm else k, angle)

    def __call__(self, x, angle, cache: KVCache | BatchedKVCache, layer):
        q, k = self._queries(x, angle), self._keys(x, angle)
        v = self._heads(self.v_proj(x))
        cache = cache.write(layer, k, v)
        if self.fresh:
            out = attention.attend_causal(q, k, v, self.backend.fused_attention)
        else:
            out = cache.attend(q, layer, self.backend)
        return self.o_proj(out.reshape(x.shape[0], -1)), cache

    def attention_weights(self, x, angle, last: Int[Array, ""], keys=None) -> Float[Array, "N S"]:
        """Attention weights of one token over the rotated keys up to ``last``.

        Without ``keys``: of the token at ``last`` of a sequence ``x`` over those up to it.
        """
        if keys is None:
            keys = self._keys(x, angle)
            x, angle = (jax.lax.dynamic_slice_in_dim(y, last, 1) for y in (x, angle))
        return attention.attention_weights(self._queries(x, angle), keys, last)


class MLP(nn.Module):
    """SwiGLU feed-forward network."""

    config: TextConfig
    dtype: jnp.dtype
    backend: Backend

    @nn.compact
    def __call__(self, x):
        def linear(features: int, name: str) -> Linear:
            return Linear(features, False, self.dtype, self.backend, name=name)

        gate = nn.silu(linear(self.config.ffn, "gate_proj")(x))
        return linear(self.config.hidden, "down_proj")(gate * linear(self.config.ffn, "up_proj")(x))


class Layer(nn.Module):
    """One decoder layer, with the signature of ``layers.run``: carry in, carry out."""

    config: TextConfig
    dtype: jnp.dtype
    backend: Backend
    fresh: bool

    def setup(self):
        self.input_layernorm = _rms_norm(self.config, self.dtype)
        self.post_attention_layernorm = _rms_norm(self.config, self.dtype)
        self.self_attn = Attention(self.config, self.dtype, self.backend, self.fresh)
        network = experts.Experts if self.config.experts else MLP
        self.mlp = network(self.config, self.dtype, self.backend)

    def __call__(self, carry, index, angle, first=0, deepstack=None):
        """Run layer ``index``; ``first`` is the first layer of the cache."""
        x, cache = carry
        out, cache = self.self_attn(self.input_layernorm(x), angle, cache, index - first)
        x = x + out
        x = x + self.mlp(self.post_attention_layernorm(x))
        if deepstack is not None:
            last = deepstack.shape[0] - 1
            x += jnp.where(index > last, 0, deepstack[jnp.minimum(index, last)]).astype(x.dtype)
        return x, cache

    def attention_weights(self, x, angle, last: Int[Array, ""], keys=None) -> Float[Array, "N S"]:
        """``Attention.attention_weights`` from the layer's input."""
        return self.self_attn.attention_weights(self.input_layernorm(x), angle, last, keys)


class Decoder(nn.Module):
    """The language model of the thinker, from embeddings to logits."""

    config: TextConfig
    dtype: jnp.dtype = jnp.float32
    backend: Backend = Backend.CPU

    def setup(self):
        config = self.config
        self.embed_tokens = Embedding(config.vocabulary, config.hidden, self.dtype, self.backend)
        self.norm = _rms_norm(config, self.dtype)
        if not config.tied:
            self.lm_head = Linear(config.vocabulary, False, self.dtype, self.backend)
        x, angle = jnp.zeros((1, config.hidden), self.dtype), jnp.zeros((1, config.head_dim // 2))
        carry = (x, KVCache.empty(config, 1, self.dtype, layers=1))
        layer = self._layer(False)
        self.layers = layers.stacked(self, "layers", layer, config.layers, carry, 0, angle)

    def embed(self, tokens: Int[Array, "*T"]) -> Float[Array, "*T D"]:
        """Embeddings of text tokens."""
        return replicate(self.embed_tokens(tokens), self.layers)

    @full_precision
    def logits(self, hidden: Float[Array, "*T D"]) -> Float[Array, "*T V"]:
        """Next-token logits, float32."""
        out = self.embed_tokens.attend(hidden) if self.config.tied else self.lm_head(hidden)
        return replicate(out.astype(jnp.float32), self.layers)

    @full_precision
    def __call__(
        self,
        embeddings: Float[Array, "T D"],
        positions: Int[Array, "3 T"],
        cache: Cache | BatchedCache,
        count: Int[Array, "*B"] | int | None = None,
        fresh: bool = False,
        deepstack: Float[Array, "K T D"] | None = None,
    ) -> tuple[Float[Array, "T D"], Any]:
        """Run a block of T tokens of one sequence, or one token of each of T sequences.

        Args:
            embeddings: the block; ``count`` tokens, then padding.
            positions: TMRoPE positions (time, height, width).
            cache: what came before. The caller ensures that ``cache.length + T`` slots exist: XLA
                would otherwise shift the write without an error.
            count: tokens of the block that are not padding, by default all; of a batch, 1 for each
                sequence that appends its token and 0 for each that does not.
            fresh: the cache is known to be empty, so the block attends to itself only.
            deepstack: added to the hidden states after each of the first K layers: features of the
                video tokens, zeros for all others.

        Returns:
            The last hidden states (normalised), and the cache with the block appended.
        """
        x, angle = embeddings, rope.angles(positions, self.config)
        segments, first = [], 0
        added = jnp.int32(embeddings.shape[0] if count is None else count)
        for segment in cache if isinstance(cache, tuple) else (cache,):
            x, segment = self._run(x, angle, segment, first, fresh, deepstack)
            first += segment.layers
            segments.append(segment.advance(added))
        return self.norm(x), tuple(segments) if isinstance(cache, tuple) else segments[0]

    @full_precision
    def prefill(
        self,
        embeddings: Float[Array, "T D"],
        tokens: Tokens,
        stages: tuple[Stage, ...],
        sizes: tuple[int, ...],
        free_slots: int,
        cache_dtype: jnp.dtype | None = None,
        deepstack: Float[Array, "K T D"] | None = None,
    ) -> tuple[Float[Array, "S D"], Tokens, tuple[KVCache, ...], Int[Array, " T"]]:
        """Run a whole prompt; each stage removes tokens before the next layer.

        Args:
            embeddings: the prompt; ``tokens.count`` tokens, then padding.
            tokens: kind, window and position of each token.
            stages: in the order of their layers.
            sizes: static number of slots after each stage (``Stage.bound``).
            free_slots: slots of the cache for the tokens after the prompt.
            cache_dtype: type of the cache, by default that of the computation.
            deepstack: as in ``__call__``.

        Returns:
            The last hidden states (normalised) of the tokens that reach the last layer, their kind
            and position, the cache in segments, and the number of layers that each token of the
            prompt should pass, 0 for padding. Tokens that a stage keeps beyond its size are cut
            off; the caller compares the numbers with ``sizes``.

        Raises:
            ValueError: stages out of order, or before the first or after the last layer.
        """
        check_stages(stages, self.config.layers)
        cache_dtype = self.dtype if cache_dtype is None else cache_dtype
        x, first, ends = embeddings, 0, [*(stage.after for stage in stages), self.config.layers]
        origin = jnp.arange(x.shape[0])  # index in the prompt of each remaining token
        depth = jnp.where(origin < tokens.count, ends[0], 0)
        segments: list[KVCache] = []
        slots: list[Array] = []  # slot of each remaining token, in each segment
        for stage, size in zip([*stages, None], [*sizes, 0], strict=True):
            last = self.config.layers if stage is None else stage.after
            # The layer whose attention a stage needs runs alone if it is before the stage.
            observed = last if stage is None or stage.ahead else last - 1
            angle = rope.angles(tokens.positions, self.config)
            cache = KVCache.empty(self.config, x.shape[0] + free_slots, cache_dtype, last - first)
            x, cache = self._run(x, angle, cache, first, True, deepstack, range(first, observed))
            inputs = x
            x, cache = self._run(x, angle, cache, first, True, deepstack, range(observed, last))
            segments.append(cache.replace(length=tokens.count))
            slots.append(jnp.arange(x.shape[0]))
            first = last
            if stage is not None:
                exists = jnp.arange(x.shape[0]) < tokens.count
                params = layers.layer_params(self.layers, jnp.int32(observed), self.backend)
                layer = self._layer(True).bind({"params": params})
                weights = layer.attention_weights(inputs, angle, tokens.count - 1)
                keep = stage.keep(weights, tokens) & exists
                depth = depth.at[origin].max(jnp.where(keep, ends[len(segments)], 0))
                index, used = front(keep, size)
                x, origin, tokens = x[index], origin[index], tokens.gather(index, jnp.sum(used))
                slots = [slot[index] for slot in slots]
                deepstack = None if deepstack is None else deepstack[:, index]
                if stage.prunes_past:
                    pairs = zip(segments, slots, strict=True)
                    segments = [s.gather(slot, tokens.count, free_slots) for s, slot in pairs]
                    slots = [jnp.arange(size)] * len(segments)
        return self.norm(x), tokens, tuple(segments), depth

    @full_precision
    def attention_to_cache(
        self, embedding: Float[Array, "1 D"], positions: Int[Array, "3 1"], cache: Cache
    ) -> tuple[Float[Array, "L S"], ...]:
        """Attention weights of one more token in every layer, mean over heads.

        Args:
            cache: what came before, with a free slot for the token.

        Returns:
            For each segment of the cache, a row for each layer and a column for each slot. The
            token itself is at ``length``; later slots have 0.
        """
        angle = rope.angles(positions, self.config)
        apply: Any = self._layer(False).apply
        segments = cache if isinstance(cache, tuple) else (cache,)
        x, first, rows = embedding, 0, []
        for segment in segments:
            count = segment.layers

            def step(carry: Any, index: Array, first: int = first) -> tuple[Any, Array]:
                params = {"params": layers.layer_params(self.layers, index, self.backend)}
                inputs, (x, filled) = carry[0], apply(params, carry, index, angle, first)
                keys = slice_layer(filled.keys, index - first, 0, filled.keys.shape[1], x.dtype)
                arguments = inputs, angle, filled.length, keys
                weights = apply(params, *arguments, method=Layer.attention_weights)
                return (x, filled), jnp.mean(weights, axis=0)

            (x, _), weights = jax.lax.scan(step, (x, segment), first + jnp.arange(count))
            rows.append(weights)
            first += count
        return tuple(rows)

    def _run(
        self,
        x: Float[Array, "T D"],
        angle: Float[Array, "T half"],
        cache: KVCache | BatchedKVCache,
        first: int,
        fresh: bool,
        deepstack: Float[Array, "K T D"] | None,
        indices: range | None = None,
    ) -> tuple[Float[Array, "T D"], Any]:
        """Pass a block through the layers of a segment, or through ``indices`` of them.

        ``first`` is the segment's first layer. The cache's length does not change.
        """
        return layers.run(
            self._layer(fresh),
            self.layers,
            (x, cache),
            angle,
            first,
            deepstack,
            layers=range(first, first + cache.layers) if indices is None else indices,
            backend=self.backend,
            tokens=x.shape[0],
        )

    def _layer(self, fresh: bool) -> Layer:
        return Layer(self.config, self.dtype, self.backend, fresh, parent=None)

    def init_all(self, tokens: Int[Array, "T"]) -> Float[Array, "T V"]:
        """Use every parameter once, for ``init``."""
        cache = KVCache.empty(self.config, tokens.shape[0], self.dtype)
        positions = rope.text_positions(0, tokens.shape[0])
        return self.logits(self(self.embed(tokens), positions, cache)[0])


def _rms_norm(config: TextConfig, dtype: jnp.dtype) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=config.rms_eps, dtype=dtype, param_dtype=dtype)


def bound_decoder(
    weights: Any, config: BaseModelConfig, dtype: jnp.dtype, backend: Backend = Backend.CPU
) -> Decoder:
    """Bind the decoder to its weights; use it inside the same JAX transformation."""
    return Decoder(config.text, dtype, backend).bind({"params": weights["text"]})
