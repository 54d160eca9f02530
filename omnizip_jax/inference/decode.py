"""From next-token logits to an answer: sampling, and several tokens per dispatch."""

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
from omnizip_jax.models.cpu import hold_in_loop
from omnizip_jax.models.decoder import BatchedKVCache, Decoder

DECODE_BLOCK = 8  # tokens per dispatch


class SamplingArrays(struct.PyTreeNode):
    """How a token is drawn: temperature 0 is greedy, ``top_p`` keeps the likeliest mass."""

    temperature: Float[Array, ""]
    top_p: Float[Array, ""]

    @classmethod
    def of(cls, temperature: float, top_p: float) -> SamplingArrays:
        """Check and convert; raises ``ValueError`` for values without meaning."""
        check_sampling(temperature, top_p)
        return cls(jnp.float32(temperature), jnp.float32(top_p))


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How an answer is made: where it stops if the model does not, and how tokens are drawn.

    Raises:
        ValueError: a value without meaning.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_count("max_new_tokens", self.max_new_tokens, 1)
        check_sampling(self.temperature, self.top_p)
        check_seed(self.seed)

    @property
    def sampling(self) -> SamplingArrays:
        return SamplingArrays.of(self.temperature, self.top_p)


def check_sampling(temperature: float, top_p: float) -> None:
    """Raise ``ValueError`` for values without meaning; on the host, no device is touched."""
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise ValueError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(temperature) and temperature >= 0 and 0 < top_p <= 1):
        raise ValueError(
            f"temperature must be >= 0 and top_p in (0, 1], got {temperature} and {top_p}"
        )


def check_seed(seed: int) -> None:
    """Raise ``ValueError`` unless JAX tells the seed from others: it drops all but 32 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")


def check_count(name: str, count: int, least: int) -> None:
    """Raise ``ValueError`` unless it is an integer of at least that."""
    if isinstance(count, bool) or not isinstance(count, int):
        raise ValueError(f"{name} must be an integer, got {count!r}")
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {count}")


class DecodeState(struct.PyTreeNode):
    """A generation in progress; the loop's state.

    Attributes:
        cache: the past, up to the last token that was made.
        logits: of the next token.
        position: of the next token, the same on all three axes.
        key: for sampling.
        finished: an end token was made.
    """

    cache: Any  # ``models.text.Cache``; a stream's is one segment
    logits: Float[Array, "V"]
    position: Int[Array, ""]
    key: PRNGKeyArray
    finished: Array


def sample(
    logits: Float[Array, "V"], sampling: SamplingArrays, key: PRNGKeyArray
) -> Int[Array, ""]:
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
    static_argnames=("config", "steps", "end_tokens", "backend"),
    donate_argnames="decode_state",
)
def generate_tokens(
    weights: Any,
    decode_state: DecodeState,
    sampling: SamplingArrays,
    limit: Int[Array, ""] | int,
    *,
    config: TextConfig,
    steps: int,
    end_tokens: tuple[int, ...],
    backend: Backend = Backend.CPU,
) -> tuple[Int[Array, "steps"], Int[Array, ""], DecodeState]:
    """Make up to ``limit`` tokens in one program; stops after an end token.

    Args:
        weights: the decoder's parameters.
        limit: at most ``steps``, which is static. The cache must have as many free slots.

    Returns:
        The tokens, how many of them are real, and the state to go on from. The end token is in
        the tokens and in the cache.
    """
    tokens, made, (decode_state,) = _generate(
        weights, [decode_state], [sampling], [limit], config, steps, end_tokens, backend
    )
    return tokens[0], made[0], decode_state


@functools.partial(
    jax.jit,
    static_argnames=("config", "steps", "end_tokens", "backend"),
    donate_argnames="generations",
)
def generate_lanes(
    weights: Any,
    generations: Sequence[DecodeState],
    samplings: Sequence[SamplingArrays],
    limits: Sequence[Int[Array, ""] | int],
    *,
    config: TextConfig,
    steps: int,
    end_tokens: tuple[int, ...],
    backend: Backend = Backend.CPU,
) -> tuple[Int[Array, "B steps"], Int[Array, "B"], tuple[DecodeState, ...]]:
    """``generate_tokens`` for B generations side by side, each to its own limit or end.

    The weights are read once for a token of every lane. A lane that has ended waits for the others.

    Args:
        generations: their caches have the same shapes.
    """
    return _generate(weights, generations, samplings, limits, config, steps, end_tokens, backend)


def _generate(
    weights: Any,
    generations: Sequence[DecodeState],
    samplings: Sequence[SamplingArrays],
    limits: Sequence[Int[Array, ""] | int],
    config: TextConfig,
    steps: int,
    end_tokens: tuple[int, ...],
    backend: Backend,
) -> tuple[Int[Array, "B steps"], Int[Array, "B"], tuple[DecodeState, ...]]:
    dtype = jax.tree.leaves(weights)[0].dtype
    ends = jnp.array(end_tokens, jnp.int32)
    sampling, limit = _stacked(samplings), jnp.stack([jnp.int32(x) for x in limits])

    def draw(lane: tuple[Array, SamplingArrays, Array]) -> tuple[Array, Array]:
        logits, sampling, key = lane
        key, subkey = jax.random.split(key)
        return sample(logits, sampling, subkey), key

    def goes_on(made, state):
        return (made < limit) & ~state.finished

    def unfinished(carry):
        _, made, state = carry
        return jnp.any(goes_on(made, state))

    def step(carry):
        tokens, made, state = carry
        active = goes_on(made, state)
        # One after the other: a draw sorts the whole vocabulary, which the likeliest does not need.
        token, key = jax.lax.map(draw, (state.logits, sampling, state.key))
        own, token = hold_in_loop(weights, token) if backend.holds_weights else (weights, token)
        decoder = Decoder(config, dtype, backend).bind({"params": own})
        positions = jnp.broadcast_to(state.position, (3, len(generations)))
        hidden, cache = decoder(decoder.embed(token), positions, state.cache, jnp.int32(active))
        after = DecodeState(
            None, decoder.logits(hidden), state.position + 1, key, jnp.isin(token, ends)
        )
        after = jax.tree.map(functools.partial(_where, active), after, state.replace(cache=None))
        lanes, place = jnp.arange(len(generations)), jnp.where(active, made, steps)
        tokens = tokens.at[lanes, place].set(token, mode="drop")
        return tokens, made + active, after.replace(cache=cache)

    state = _side_by_side(generations)
    made = jnp.zeros(len(generations), jnp.int32)
    tokens = jnp.zeros((len(generations), steps), jnp.int32)
    tokens, made, state = jax.lax.while_loop(unfinished, step, (tokens, made, state))
    return tokens, made, _apart(state)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _where(lanes: Bool[Array, "B"], new: Array, old: Array) -> Array:
    return jnp.where(lanes.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _side_by_side(generations: Sequence[DecodeState]) -> DecodeState:
    """One state of all lanes: small things stacked, caches as they are, segment by segment."""
    caches = [decode_state.cache for decode_state in generations]
    if isinstance(caches[0], tuple):
        cache = tuple(BatchedKVCache(segments) for segments in zip(*caches, strict=True))
    else:
        cache = BatchedKVCache(tuple(caches))
    return _stacked([each.replace(cache=None) for each in generations]).replace(cache=cache)


def _apart(state: DecodeState) -> tuple[DecodeState, ...]:
    """The lanes of ``_side_by_side``, each by itself again."""
    cache, small = state.cache, state.replace(cache=None)
    if isinstance(cache, tuple):
        caches = tuple(zip(*(segment.caches for segment in cache), strict=True))
    else:
        caches = cache.caches
    return tuple(
        jax.tree.map(lambda x, lane=lane: x[lane], small).replace(cache=each)
        for lane, each in enumerate(caches)
    )


def new_text(tokenizer: Any, ids: Sequence[int], said: str, finished: bool) -> str:
    """The text of the tokens so far, whole characters only; the last word where it is finished.

    Args:
        said: the text as it was before.
    """
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    # The first bytes of a character that is spread over tokens decode to this sign.
    return said if text.endswith("\N{REPLACEMENT CHARACTER}") and not finished else text


def end_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Ids after which the model has said all: end of turn, end of text."""
    return tuple(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))
