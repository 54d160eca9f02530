"""From next-token logits to an answer: sampling, and several tokens per dispatch."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from omnizip_jax.config import TextConfig
from omnizip_jax.models.rope import text_positions
from omnizip_jax.models.text import Decoder, KVCache


@struct.dataclass
class Sampling:
    """How a token is drawn: temperature 0 is greedy, ``top_p`` keeps the likeliest mass."""

    temperature: Float[Array, ""]
    top_p: Float[Array, ""]


@struct.dataclass
class Generation:
    """A generation in progress; the loop's state.

    Attributes:
        cache: the past, up to the last token that was made.
        logits: of the next token.
        position: of the next token, the same on all three axes.
        key: for sampling.
        finished: an end token was made.
    """

    cache: KVCache
    logits: Float[Array, "V"]
    position: Int[Array, ""]
    key: PRNGKeyArray
    finished: Array


def sample(logits: Float[Array, "V"], sampling: Sampling, key: PRNGKeyArray) -> Int[Array, ""]:
    """Draw one token: the likeliest, or from the smallest set that holds ``top_p`` of the mass."""

    def draw(_) -> Array:
        scaled, tokens = jax.lax.top_k(logits / sampling.temperature, logits.shape[0])
        mass = jnp.cumsum(jax.nn.softmax(scaled))
        # A token stays if the mass before it is short of top_p; so the first always stays.
        before = jnp.concatenate([jnp.zeros(1), mass[:-1]])
        choice = jax.random.categorical(key, jnp.where(before < sampling.top_p, scaled, -jnp.inf))
        return tokens[choice].astype(jnp.int32)

    def likeliest(_) -> Array:
        return jnp.argmax(logits).astype(jnp.int32)

    return jax.lax.cond(sampling.temperature > 0, draw, likeliest, None)


@functools.partial(
    jax.jit,
    static_argnames=("config", "steps", "end_tokens"),
    donate_argnames="generation",
)
def generate_tokens(
    weights: Any,
    generation: Generation,
    sampling: Sampling,
    limit: Int[Array, ""] | int,
    *,
    config: TextConfig,
    steps: int,
    end_tokens: tuple[int, ...],
) -> tuple[Int[Array, "steps"], Int[Array, ""], Generation]:
    """Make up to ``limit`` tokens in one program; stops after an end token.

    Args:
        weights: the decoder's parameters.
        limit: at most ``steps``, which is static. The cache must have as many free slots.

    Returns:
        The tokens, how many of them are real, and the state to go on from. The end token is in
        the tokens and in the cache.
    """
    decoder = Decoder(config, generation.cache.keys.dtype)
    ends = jnp.array(end_tokens, jnp.int32)

    def unfinished(carry):
        _, made, state = carry
        return (made < limit) & ~state.finished

    def step(carry):
        tokens, made, state = carry
        key, subkey = jax.random.split(state.key)
        token = sample(state.logits, sampling, subkey)
        logits, cache = decoder.apply(
            {"params": weights}, token, state.position, state.cache, method=next_logits
        )
        state = Generation(cache, logits, state.position + 1, key, jnp.isin(token, ends))
        return tokens.at[made].set(token), made + 1, state

    tokens = jnp.zeros(steps, jnp.int32)
    return jax.lax.while_loop(unfinished, step, (tokens, jnp.int32(0), generation))


def next_logits(
    decoder: Decoder, token: Array, position: Array, cache: KVCache
) -> tuple[Float[Array, "V"], KVCache]:
    """Append one token to the cache; the logits of the one after it."""
    hidden, cache = decoder(decoder.embed(token[None]), text_positions(position, 1), cache)
    return decoder.logits(hidden)[0], cache
