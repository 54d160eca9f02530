"""The decoder: a Qwen2.5 language model with TMRoPE over a static key-value cache.

Unbatched and pure: ``jax.vmap`` it for several sequences. Layers are stacked and scanned; the cache
travels in the scan's carry, so that XLA updates it in place.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from omnizip_jax.compression.pack import front
from omnizip_jax.compression.stages import Stage, Tokens
from omnizip_jax.models import attention, layers, rope
from omnizip_jax.models.backend import Backend, full_precision
from omnizip_jax.models.config import TextConfig

FEW_ROWS = 8  # up to this many, a product costs less than a copy of its weights
SHORT_BLOCK = 1024  # below this many tokens, copies of the weights would be felt on a GPU


class KVCache(struct.PyTreeNode):
    """Rotated keys and values of some layers, all of them if no stage cuts the decoder.

    Attributes:
        keys, values: S slots; those from ``length`` on hold padding that the next block
            overwrites.
        length: slots in use.
    """

    keys: Float[Array, "L S K H"]
    values: Float[Array, "L S K H"]
    length: Int[Array, ""]

    @classmethod
    def empty(
        cls, config: TextConfig, slots: int, dtype=jnp.float32, layers: int | None = None
    ) -> KVCache:
        """A cache of so many slots, for all layers or the given number of them."""
        shape = (layers or config.layers, slots, config.kv_heads, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.int32(0))

    def take(self, index: Int[Array, " T"], length: Int[Array, ""], room: int) -> KVCache:
        """The slots at ``index``, of which ``length`` are in use, and ``room`` more."""
        room_behind = ((0, 0), (0, room), (0, 0), (0, 0))
        keys, values = (jnp.pad(x[:, index], room_behind) for x in (self.keys, self.values))
        return KVCache(keys, values, length)

    @property
    def layers(self) -> int:
        """Layers that the cache belongs to."""
        return self.keys.shape[0]

    def write(
        self,
        layer: Int[Array, ""] | int,
        keys: Float[Array, "T K H"],
        values: Float[Array, "T K H"],
    ) -> KVCache:
        """A block in one layer, behind what is in use; ``grown`` makes it part of that."""
        start = (layer, self.length, 0, 0)
        return self.replace(
            keys=jax.lax.dynamic_update_slice(self.keys, keys[None], start),
            values=jax.lax.dynamic_update_slice(self.values, values[None], start),
        )

    def attend(
        self, q: Float[Array, "T N H"], layer: Int[Array, ""] | int, fused: bool
    ) -> Float[Array, "T N H"]:
        """Attention of a block that was written to what came before it and to itself."""
        return attention.attend_cached(q, self.keys, self.values, layer, self.length, fused)

    def grown(self, count: Int[Array, ""]) -> KVCache:
        """With so many more slots in use."""
        return self.replace(length=self.length + count)


class BatchedKVCache(struct.PyTreeNode):
    """Caches of B sequences that pass the same layers side by side, each a token at a time.

    Row b of a block is the next token of lane b. The products with the weights take all rows at
    once; every lane writes to and attends to its own cache, which stays where it is.
    """

    caches: tuple[KVCache, ...]

    @property
    def layers(self) -> int:
        """Layers that the caches belong to."""
        return self.caches[0].layers

    def write(
        self,
        layer: Int[Array, ""] | int,
        keys: Float[Array, "B K H"],
        values: Float[Array, "B K H"],
    ) -> BatchedKVCache:
        """A row for each lane, behind what it has in use."""
        rows = zip(self.caches, keys[:, None], values[:, None], strict=True)
        return BatchedKVCache(tuple(cache.write(layer, k, v) for cache, k, v in rows))

    def attend(
        self, q: Float[Array, "B N H"], layer: Int[Array, ""] | int, fused: bool
    ) -> Float[Array, "B N H"]:
        """Attention of every row that was written to its own lane."""
        pairs = [(cache.keys, cache.values) for cache in self.caches]
        starts = jnp.stack([cache.length for cache in self.caches])
        return attention.attend_lanes(q, pairs, layer, starts)

    def grown(self, count: Int[Array, " B"]) -> BatchedKVCache:
        """With so many more slots in use in each lane."""
        pairs = zip(self.caches, count, strict=True)
        return BatchedKVCache(tuple(cache.grown(more) for cache, more in pairs))


# One segment for all layers, or several, one after another, each with its own length.
Cache = KVCache | tuple[KVCache, ...]
BatchedCache = BatchedKVCache | tuple[BatchedKVCache, ...]


class Linear(nn.Module):
    """``nn.Dense`` with the released layout, [out, in].

    A product with one row then reads each row of ``weight`` once, straight from the stack of layers
    that is scanned. XLA on a CPU copies a layer's [in, out] kernels first; on a GPU it copies
    before every product, hence ``Backend.summed_rows``.
    """

    features: int
    use_bias: bool
    dtype: jnp.dtype
    backend: Backend

    @nn.compact
    def __call__(self, x: Float[Array, "*T I"]) -> Float[Array, "*T O"]:
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        weight = self.get_variable("params", "weight")
        if not isinstance(weight, layers.Stacked):
            weight = self.param("weight", init, (self.features, x.shape[-1]), self.dtype)
        if isinstance(weight, layers.Stacked):
            out = weight.times(x)
        elif x.shape[0] == 1 and self.backend.summed_rows:
            terms = weight.astype(jnp.float32) * x.astype(jnp.float32)
            out = jnp.sum(terms, axis=-1)[None].astype(self.dtype)
        else:
            out = x @ weight.T
        if self.use_bias:
            out += self.param("bias", nn.initializers.zeros, (self.features,), self.dtype)
        return out


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

        self.q_proj = linear(config.heads * config.head_dim, True)
        self.k_proj = linear(config.kv_heads * config.head_dim, True)
        self.v_proj = linear(config.kv_heads * config.head_dim, True)
        self.o_proj = linear(config.hidden, False)

    def _heads(self, projected: Float[Array, "T NH"]) -> Float[Array, "T N H"]:
        return projected.reshape(projected.shape[0], -1, self.config.head_dim)

    def __call__(self, x, angle, cache: KVCache | BatchedKVCache, place):
        q = rope.rotate(self._heads(self.q_proj(x)), angle)
        k = rope.rotate(self._heads(self.k_proj(x)), angle)
        v = self._heads(self.v_proj(x))
        cache = cache.write(place, k, v)
        fused = self.backend.fused_attention
        if self.fresh:
            out = attention.attend_causal(q, k, v, fused)
        else:
            out = cache.attend(q, place, fused)
        return self.o_proj(out.reshape(x.shape[0], -1)), cache

    def of_last(self, x, angle, last: Int[Array, ""]) -> Float[Array, "N T"]:
        """Weights with which the token at ``last`` attends to those up to it."""
        row, turn = (jax.lax.dynamic_slice_in_dim(y, last, 1) for y in (x, angle))
        k = rope.rotate(self._heads(self.k_proj(x)), angle)
        return self.to_keys(row, turn, k, last)

    def to_keys(self, x, angle, keys, last: Int[Array, ""]) -> Float[Array, "N S"]:
        """Weights with which one token attends to rotated keys, those up to ``last``."""
        q = rope.rotate(self._heads(self.q_proj(x)), angle)
        return attention.weights_of_last(q, keys, last)


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
    """One decoder layer, in the form that ``layers.run`` wants: carry in, carry out."""

    config: TextConfig
    dtype: jnp.dtype
    backend: Backend
    fresh: bool

    def setup(self):
        def norm() -> nn.RMSNorm:
            return nn.RMSNorm(epsilon=self.config.rms_eps, dtype=self.dtype, param_dtype=self.dtype)

        self.input_layernorm, self.post_attention_layernorm = norm(), norm()
        self.self_attn = Attention(self.config, self.dtype, self.backend, self.fresh)
        self.mlp = MLP(self.config, self.dtype, self.backend)

    def __call__(self, carry, index, angle, first=0):
        """Run layer ``index``; ``first`` is the first one of the cache."""
        x, cache = carry
        out, cache = self.self_attn(self.input_layernorm(x), angle, cache, index - first)
        x = x + out
        return x + self.mlp(self.post_attention_layernorm(x)), cache

    def attention_of_last(self, x, angle, last: Int[Array, ""]) -> Float[Array, "N T"]:
        """What the layer's own norm and projections make of hidden states that enter it."""
        return self.self_attn.of_last(self.input_layernorm(x), angle, last)

    def attention_to_keys(self, x, angle, keys, last: Int[Array, ""]) -> Float[Array, "N S"]:
        """What the layer makes of one token that enters it, against keys of its cache."""
        return self.self_attn.to_keys(self.input_layernorm(x), angle, keys, last)


class Decoder(nn.Module):
    """The language model of the thinker, from embeddings to logits."""

    config: TextConfig
    dtype: jnp.dtype = jnp.float32
    backend: Backend = Backend()

    def setup(self):
        config = self.config
        self.embed_tokens = nn.Embed(
            config.vocabulary, config.hidden, dtype=self.dtype, param_dtype=self.dtype
        )
        self.norm = nn.RMSNorm(epsilon=config.rms_eps, dtype=self.dtype, param_dtype=self.dtype)
        if not config.tied:
            self.lm_head = Linear(config.vocabulary, False, self.dtype, self.backend)
        x, angle = jnp.zeros((1, config.hidden), self.dtype), jnp.zeros((1, config.head_dim // 2))
        carry = (x, KVCache.empty(config, 1, self.dtype, layers=1))
        layer = self._layer(False)
        self.layers = layers.stacked(self, "layers", layer, config.layers, carry, 0, angle)

    def embed(self, tokens: Int[Array, "*T"]) -> Float[Array, "*T D"]:
        """Embeddings of text tokens."""
        return self.embed_tokens(tokens)

    @full_precision
    def logits(self, hidden: Float[Array, "*T D"]) -> Float[Array, "*T V"]:
        """Next-token logits, float32."""
        out = self.embed_tokens.attend(hidden) if self.config.tied else self.lm_head(hidden)
        return out.astype(jnp.float32)

    @full_precision
    def __call__(
        self,
        embeddings: Float[Array, "T D"],
        positions: Int[Array, "3 T"],
        cache: Cache | BatchedCache,
        count: Int[Array, "*B"] | int | None = None,
        fresh: bool = False,
    ) -> tuple[Float[Array, "T D"], Any]:
        """Run a block of T tokens and append it to the cache, or one token to each of T lanes.

        Args:
            embeddings: the block, its ``count`` tokens in front and padding behind.
            positions: TMRoPE positions (time, height, width).
            cache: the past. The caller makes sure that ``cache.length + T`` slots exist:
                XLA would otherwise shift the write without a word.
            count: tokens of the block that are real, all of them by default; of lanes, 1 for those
                that take their token and 0 for those that stay as they are.
            fresh: the cache is known to be empty, so the block attends to itself alone.

        Returns:
            The last hidden states (normalised), and the cache with ``count`` more tokens.
        """
        x, angle = embeddings, rope.angles(positions, self.config)
        segments, first = [], 0
        added = jnp.int32(embeddings.shape[0] if count is None else count)
        for segment in cache if isinstance(cache, tuple) else (cache,):
            x, segment = self._run(x, angle, segment, first, fresh)
            first += segment.layers
            segments.append(segment.grown(added))
        return self.norm(x), tuple(segments) if isinstance(cache, tuple) else segments[0]

    @full_precision
    def prefill(
        self,
        embeddings: Float[Array, "T D"],
        tokens: Tokens,
        stages: tuple[Stage, ...],
        sizes: tuple[int, ...],
        room: int,
    ) -> tuple[Float[Array, "S D"], Tokens, tuple[KVCache, ...], Int[Array, " T"]]:
        """Run a whole prompt through the decoder, with fewer tokens after every stage.

        Args:
            embeddings: the prompt, its real tokens in front and padding behind.
            tokens: what they are.
            stages: in the order of their layers.
            sizes: static slots of the tokens that go on after each stage (``Stage.bound``).
            room: slots of the cache for what follows the prompt.

        Returns:
            The last hidden states (normalised) of the tokens that went all the way, what those are,
            the cache in segments, and how many layers each token of the prompt was to pass, 0 for
            padding: of those that a stage keeps, what is beyond its size was cut off, which the
            caller must not let pass.

        Raises:
            ValueError: stages out of order or after no layer.
        """
        cuts = [stage.after for stage in stages]
        if sorted({0, self.config.layers, *cuts}) != [0, *cuts, self.config.layers]:
            raise ValueError(
                f"stages should follow different layers between 1 and {self.config.layers - 1}, in "
                f"their order; they follow {cuts}"
            )
        x, first, ends = embeddings, 0, [*cuts, self.config.layers]
        origin = jnp.arange(x.shape[0])  # the places in the prompt of the tokens that go on
        depth = jnp.where(origin < tokens.count, ends[0], 0)
        segments: list[KVCache] = []
        places: list[Array] = []  # where the tokens that go on are, in each segment
        for stage, size in zip([*stages, None], [*sizes, 0], strict=True):
            last = self.config.layers if stage is None else stage.after
            # The last layer before a stage runs alone where the stage asks for its attention.
            asked = last if stage is None or stage.ahead else last - 1
            angle = rope.angles(tokens.positions, self.config)
            cache = KVCache.empty(self.config, x.shape[0] + room, self.dtype, last - first)
            x, cache = self._run(x, angle, cache, first, True, range(first, asked))
            enters = x
            x, cache = self._run(x, angle, cache, first, True, range(asked, last))
            segments.append(cache.replace(length=tokens.count))
            places.append(jnp.arange(x.shape[0]))
            first = last
            if stage is not None:
                exists = jnp.arange(x.shape[0]) < tokens.count
                attended = self._attention_of_last(enters, angle, tokens.count - 1, asked)
                keep = stage.keep(attended, tokens) & exists
                depth = depth.at[origin].max(jnp.where(keep, ends[len(segments)], 0))
                index, used = front(keep, size)
                x, origin, tokens = x[index], origin[index], tokens.take(index, jnp.sum(used))
                places = [place[index] for place in places]
                if stage.prunes_past:
                    pairs = zip(segments, places, strict=True)
                    segments = [past.take(place, tokens.count, room) for past, place in pairs]
                    places = [jnp.arange(size)] * len(segments)
        return self.norm(x), tokens, tuple(segments), depth

    @full_precision
    def attention_to_cache(
        self, embedding: Float[Array, "1 D"], positions: Int[Array, "3 1"], cache: Cache
    ) -> tuple[Float[Array, "L S"], ...]:
        """What one more token attends to in every layer, mean over heads: a row a layer.

        Args:
            cache: the past; it has a free slot for the token.

        Returns:
            For each segment of the cache, its layers against its slots. The token itself is at
            ``length``; what lies behind has 0.
        """
        angle = rope.angles(positions, self.config)
        apply: Any = self._layer(False).apply
        segments = cache if isinstance(cache, tuple) else (cache,)
        x, first, rows = embedding, 0, []
        for segment in segments:
            count = segment.layers

            def step(carry: Any, index: Array, first: int = first) -> tuple[Any, Array]:
                params = {"params": layers.layer_of(self.layers, index, self.backend.held)}
                entering, (x, filled) = carry[0], apply(params, carry, index, angle, first)
                keys = jax.lax.dynamic_index_in_dim(filled.keys, index - first, keepdims=False)
                given = entering, angle, keys, filled.length
                attended = apply(params, *given, method=Layer.attention_to_keys)
                return (x, filled), jnp.mean(attended, axis=0)

            (x, _), attended = jax.lax.scan(step, (x, segment), first + jnp.arange(count))
            rows.append(attended)
            first += count
        return tuple(rows)

    def _run(
        self,
        x: Float[Array, "T D"],
        angle: Float[Array, "T half"],
        cache: KVCache | BatchedKVCache,
        first: int,
        fresh: bool,
        which: range | None = None,
    ) -> tuple[Float[Array, "T D"], Any]:
        """A block through the layers of one segment, or ``which`` of them; its first is ``first``.

        The cache's length stays as it is.
        """
        which = range(first, first + cache.layers) if which is None else which
        # XLA on a GPU copies the weights of a layer out of the scanned stack before each product;
        # unrolled, it reads them where they are. One row has products that read them in place.
        return layers.run(
            self._layer(fresh),
            self.layers,
            (x, cache),
            angle,
            first,
            layers=which,
            hold=self.backend.held,
            unrolled=self.backend.unrolled and 1 < x.shape[0] <= SHORT_BLOCK,
            tiled=self.backend.tiled and 1 < x.shape[0] <= FEW_ROWS,
        )

    def _attention_of_last(self, x, angle, last, layer: int) -> Float[Array, "N T"]:
        """Attention of the token at ``last`` in a layer, from the hidden states that enter it."""
        params = layers.layer_of(self.layers, jnp.int32(layer), self.backend.held)
        return self._layer(True).bind({"params": params}).attention_of_last(x, angle, last)

    def _layer(self, fresh: bool) -> Layer:
        return Layer(self.config, self.dtype, self.backend, fresh, parent=None)

    def init_all(self, tokens: Int[Array, "T"]) -> Float[Array, "T V"]:
        """Touch every parameter once; what ``init`` is called with."""
        cache = KVCache.empty(self.config, tokens.shape[0], self.dtype)
        positions = rope.text_positions(0, tokens.shape[0])
        return self.logits(self(self.embed(tokens), positions, cache)[0])
