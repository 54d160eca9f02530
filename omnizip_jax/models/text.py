"""The decoder: a Qwen2.5 language model with TMRoPE over a static key-value cache.

Unbatched and pure: ``jax.vmap`` it for several sequences. Layers are stacked and scanned; the cache
travels in the scan's carry, so that XLA updates it in place.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from omnizip_jax.models import attention, layers, rope
from omnizip_jax.models.config import TextConfig
from omnizip_jax.models.kernels import Kernels, exact

SHORT_BLOCK = 1024  # below this many tokens, copies of the weights would be felt on a GPU


class KVCache(struct.PyTreeNode):
    """Rotated keys and values of every layer.

    Attributes:
        keys, values: S slots; those from ``length`` on hold padding that the next block
            overwrites.
        length: slots in use.
    """

    keys: Float[Array, "L S K H"]
    values: Float[Array, "L S K H"]
    length: Int[Array, ""]

    @classmethod
    def empty(cls, config: TextConfig, slots: int, dtype=jnp.float32) -> KVCache:
        shape = (config.layers, slots, config.kv_heads, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.int32(0))


class Linear(nn.Module):
    """``nn.Dense`` with the released layout, [out, in].

    A product with one row then reads each row of ``weight`` once, straight from the stack of layers
    that is scanned. XLA on a CPU copies a layer's [in, out] kernels first; on a GPU it copies
    before every product, hence ``Kernels.summed_rows``.
    """

    features: int
    use_bias: bool
    dtype: jnp.dtype
    kernels: Kernels

    @nn.compact
    def __call__(self, x: Float[Array, "T I"]) -> Float[Array, "T O"]:
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        weight = self.param("weight", init, (self.features, x.shape[-1]), self.dtype)
        if x.shape[0] == 1 and self.kernels.summed_rows:
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
    kernels: Kernels
    fresh: bool

    @nn.compact
    def __call__(self, x, angle, cache: KVCache, layer):
        config, length = self.config, x.shape[0]

        def project(heads: int, name: str) -> Array:
            features = heads * config.head_dim
            y = Linear(features, True, self.dtype, self.kernels, name=name)(x)
            return y.reshape(length, heads, config.head_dim)

        q = rope.rotate(project(config.heads, "q_proj"), angle)
        k = rope.rotate(project(config.kv_heads, "k_proj"), angle)
        v = project(config.kv_heads, "v_proj")
        start = (layer, cache.length, 0, 0)
        cache = cache.replace(
            keys=jax.lax.dynamic_update_slice(cache.keys, k[None], start),
            values=jax.lax.dynamic_update_slice(cache.values, v[None], start),
        )
        fused = self.kernels.fused_attention
        if self.fresh:
            out = attention.attend_causal(q, k, v, fused)
        else:
            out = attention.attend_cached(q, cache.keys, cache.values, layer, cache.length, fused)
        out = out.reshape(length, -1)
        return Linear(config.hidden, False, self.dtype, self.kernels, name="o_proj")(out), cache


class MLP(nn.Module):
    """SwiGLU feed-forward network."""

    config: TextConfig
    dtype: jnp.dtype
    kernels: Kernels

    @nn.compact
    def __call__(self, x):
        def linear(features: int, name: str) -> Linear:
            return Linear(features, False, self.dtype, self.kernels, name=name)

        gate = nn.silu(linear(self.config.ffn, "gate_proj")(x))
        return linear(self.config.hidden, "down_proj")(gate * linear(self.config.ffn, "up_proj")(x))


class Layer(nn.Module):
    """One decoder layer, in the form that ``layers.run`` wants: carry in, carry out."""

    config: TextConfig
    dtype: jnp.dtype
    kernels: Kernels
    fresh: bool

    @nn.compact
    def __call__(self, carry, layer, angle):
        x, cache = carry

        def norm(name: str) -> nn.RMSNorm:
            return nn.RMSNorm(
                epsilon=self.config.rms_eps, dtype=self.dtype, param_dtype=self.dtype, name=name
            )

        attn = Attention(self.config, self.dtype, self.kernels, self.fresh, name="self_attn")
        out, cache = attn(norm("input_layernorm")(x), angle, cache, layer)
        x = x + out
        mlp = MLP(self.config, self.dtype, self.kernels, name="mlp")
        x = x + mlp(norm("post_attention_layernorm")(x))
        return x, cache


class Decoder(nn.Module):
    """The language model of the thinker, from embeddings to logits."""

    config: TextConfig
    dtype: jnp.dtype = jnp.float32
    kernels: Kernels = Kernels()

    def setup(self):
        config = self.config
        self.embed_tokens = nn.Embed(
            config.vocabulary, config.hidden, dtype=self.dtype, param_dtype=self.dtype
        )
        self.norm = nn.RMSNorm(epsilon=config.rms_eps, dtype=self.dtype, param_dtype=self.dtype)
        if not config.tied:
            self.lm_head = Linear(config.vocabulary, False, self.dtype, self.kernels)

    def embed(self, tokens: Int[Array, "T"]) -> Float[Array, "T D"]:
        """Embeddings of text tokens."""
        return self.embed_tokens(tokens)

    @exact
    def logits(self, hidden: Float[Array, "T D"]) -> Float[Array, "T V"]:
        """Next-token logits, float32."""
        out = self.embed_tokens.attend(hidden) if self.config.tied else self.lm_head(hidden)
        return out.astype(jnp.float32)

    @nn.compact
    @exact
    def __call__(
        self,
        embeddings: Float[Array, "T D"],
        positions: Int[Array, "3 T"],
        cache: KVCache,
        count: Int[Array, ""] | int | None = None,
        fresh: bool = False,
    ) -> tuple[Float[Array, "T D"], KVCache]:
        """Run a block of T tokens and append it to the cache.

        Args:
            embeddings: the block, its ``count`` tokens in front and padding behind.
            positions: TMRoPE positions (time, height, width).
            cache: the past. The caller makes sure that ``cache.length + T`` slots exist:
                XLA would otherwise shift the write without a word.
            count: tokens of the block that are real; all of them by default.
            fresh: the cache is known to be empty, so the block attends to itself alone.

        Returns:
            The last hidden states (normalised), and the cache with ``count`` more tokens.
        """
        # XLA on a GPU copies the weights of a layer out of the scanned stack before each product;
        # unrolled, it reads them where they are. One row has products that read them in place.
        kernels = self.kernels
        unrolled = kernels.unrolled and 1 < embeddings.shape[0] <= SHORT_BLOCK
        layer = Layer(self.config, self.dtype, kernels, fresh, parent=None)
        carry, angle = (embeddings, cache), rope.angles(positions, self.config)
        stack = layers.stacked(self, "layers", layer, self.config.layers, carry, 0, angle)
        every = range(self.config.layers)
        x, cache = layers.run(
            layer, stack, carry, angle, layers=every, hold=kernels.held, unrolled=unrolled
        )
        count = embeddings.shape[0] if count is None else count
        return self.norm(x), cache.replace(length=cache.length + jnp.int32(count))

    def init_all(self, tokens: Int[Array, "T"]) -> Float[Array, "T V"]:
        """Touch every parameter once; what ``init`` is called with."""
        cache = KVCache.empty(self.config, tokens.shape[0], self.dtype)
        positions = rope.text_positions(0, tokens.shape[0])
        return self.logits(self(self.embed(tokens), positions, cache)[0])
