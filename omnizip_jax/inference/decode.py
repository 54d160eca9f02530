"""Decoding: sampling, and several tokens of a batch of sequences per dispatch."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from omnizip_jax.models.backend import Backend
from omnizip_jax.models.config import TextConfig
from omnizip_jax.models.cpu_kernels import hold_in_loop
from omnizip_jax.models.decoder import BatchedKVCache, Decoder

DECODE_BLOCK = 8  # tokens per dispatch


class SamplingArrays(struct.PyTreeNode):
    """Sampling parameters as device arrays."""

    temperature: Float[Array, ""]
    top_p: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """Settings of an answer: its longest length, and how its tokens are sampled.

    The fields are arguments of ``generate``.

    Raises:
        ValueError: a value out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_count("max_new_tokens", self.max_new_tokens, 1)
        check_seed(self.seed)
        temperature, top_p = self.temperature, self.top_p
        for name, value in (("temperature", temperature), ("top_p", top_p)):
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if not (math.isfinite(temperature) and temperature >= 0 and 0 < top_p <= 1):
            raise ValueError(
                f"temperature must be >= 0 and top_p in (0, 1], got {temperature} and {top_p}"
            )

    @property
    def sampling(self) -> SamplingArrays:
        return SamplingArrays(jnp.float32(self.temperature), jnp.float32(self.top_p))


def check_seed(seed: int) -> None:
    """Raise ``ValueError`` unless the seed has at most 32 bits: JAX drops the others."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")


def check_count(name: str, count: int, least: int) -> None:
    """Raise ``ValueError`` unless ``count`` is an integer of at least ``least``."""
    if isinstance(count, bool) or not isinstance(count, int):
        raise ValueError(f"{name} must be an integer, got {count!r}")
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {count}")


class DecodeState(struct.PyTreeNode):
    """State of the decoding loop.

    Attributes:
        cache: of all tokens up to the last one that was generated; several segments after a pruned
            prefill.
        logits: of the next token.
        position: of the next token, the same on all three axes.
        key: of the sampling.
        finished: an end token was generated.
    """

    cache: Any
    logits: Float[Array, "V"]
    position: Int[Array, ""]
    key: PRNGKeyArray
    finished: Array


def sample(
    logits: Float[Array, "V"], sampling: SamplingArrays, key: PRNGKeyArray
) -> Int[Array, ""]:
    """Sample one token: the most probable, or one of the smallest set that holds ``top_p``."""

    def draw(_) -> Array:
        scaled, tokens = jax.lax.top_k(logits / sampling.temperature, logits.shape[0])
        mass = jnp.cumsum(jax.nn.softmax(scaled))
        # A token is kept if the mass before it is less than top_p; so the first always is.
        before = jnp.concatenate([jnp.zeros(1), mass[:-1]])
        choice = jax.random.categorical(key, jnp.where(before < sampling.top_p, scaled, -jnp.inf))
        return tokens[choice].astype(jnp.int32)

    def greedy(_) -> Array:
        return jnp.argmax(logits).astype(jnp.int32)

    return jax.lax.cond(sampling.temperature > 0, draw, greedy, None)


@functools.partial(
    jax.jit,
    static_argnames=("config", "steps", "end_tokens", "dtype", "backend"),
    donate_argnames="states",
)
def generate_tokens(
    weights: Any,
    states: Sequence[DecodeState],
    samplings: Sequence[SamplingArrays],
    limits: Sequence[Int[Array, ""] | int],
    *,
    config: TextConfig,
    steps: int,
    end_tokens: tuple[int, ...],
    dtype: np.dtype = np.dtype(np.float32),  # noqa: B008 (immutable)
    backend: Backend = Backend.CPU,
) -> tuple[Int[Array, "B steps"], Int[Array, "B"], tuple[DecodeState, ...]]:
    """Generate up to ``limits`` tokens of B sequences in one program, each up to its end token.

    The weights are read once for a token of every sequence. A sequence that has ended is idle until
    the others have.

    Args:
        weights: the decoder's parameters.
        states: their caches have the same shapes, and free slots for their limits.
        limits: each at most ``steps``, which is static.

    Returns:
        The tokens, how many of them were generated, and the states to continue from. An end token
        is among the tokens and in the cache.
    """
    ends = jnp.array(end_tokens, jnp.int32)
    sampling, limit = _stacked(samplings), jnp.stack([jnp.int32(x) for x in limits])

    def draw(inputs: tuple[Array, SamplingArrays, Array]) -> tuple[Array, Array]:
        logits, sampling, key = inputs
        key, subkey = jax.random.split(key)
        return sample(logits, sampling, subkey), key

    def active(count, state):
        return (count < limit) & ~state.finished

    def any_active(carry):
        _, count, state = carry
        return jnp.any(active(count, state))

    def step(carry):
        tokens, count, state = carry
        now = active(count, state)
        # One after the other: sampling sorts the whole vocabulary, greedy selection does not.
        token, key = jax.lax.map(draw, (state.logits, sampling, state.key))
        own, token = hold_in_loop(weights, token) if backend.holds_weights else (weights, token)
        decoder = Decoder(config, dtype, backend).bind({"params": own})
        positions = jnp.broadcast_to(state.position, (3, len(states)))
        hidden, cache = decoder(decoder.embed(token), positions, state.cache, jnp.int32(now))
        after = DecodeState(
            None, decoder.logits(hidden), state.position + 1, key, jnp.isin(token, ends)
        )
        after = jax.tree.map(functools.partial(_where, now), after, state.replace(cache=None))
        rows, place = jnp.arange(len(states)), jnp.where(now, count, steps)
        tokens = tokens.at[rows, place].set(token, mode="drop")
        return tokens, count + now, after.replace(cache=cache)

    count = jnp.zeros(len(states), jnp.int32)
    tokens = jnp.zeros((len(states), steps), jnp.int32)
    tokens, count, state = jax.lax.while_loop(any_active, step, (tokens, count, _batched(states)))
    return tokens, count, _unbatched(state)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _where(rows: Bool[Array, "B"], new: Array, old: Array) -> Array:
    return jnp.where(rows.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _batched(states: Sequence[DecodeState]) -> DecodeState:
    """One state of all sequences: small arrays stacked, caches as they are, by segment."""
    caches = [state.cache for state in states]
    if isinstance(caches[0], tuple):
        cache = tuple(BatchedKVCache(segments) for segments in zip(*caches, strict=True))
    else:
        cache = BatchedKVCache(tuple(caches))
    return _stacked([each.replace(cache=None) for each in states]).replace(cache=cache)


def _unbatched(state: DecodeState) -> tuple[DecodeState, ...]:
    """The sequences of ``_batched``, each on its own."""
    cache, small = state.cache, state.replace(cache=None)
    if isinstance(cache, tuple):
        caches = tuple(zip(*(segment.caches for segment in cache), strict=True))
    else:
        caches = cache.caches
    return tuple(
        jax.tree.map(lambda x, row=row: x[row], small).replace(cache=each)
        for row, each in enumerate(caches)
    )


def new_text(tokenizer: Any, ids: Sequence[int], previous: str, finished: bool) -> str:
    """The text of the tokens so far: whole characters only, unless the answer is finished.

    Args:
        previous: the text before the last tokens.
    """
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    # The first bytes of a character that is spread over tokens decode to this character.
    return previous if text.endswith("\N{REPLACEMENT CHARACTER}") and not finished else text
