"""From next-token logits to an answer: sampling, and several tokens per dispatch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from omnizip_jax.models.config import TextConfig
from omnizip_jax.models.kernels import Kernels
from omnizip_jax.models.layers import held
from omnizip_jax.models.rope import text_positions
from omnizip_jax.models.text import Decoder

if TYPE_CHECKING:
    from omnizip_jax.models.params import Params

DECODE_BLOCK = 8  # tokens per dispatch


class Sampling(struct.PyTreeNode):
    """How a token is drawn: temperature 0 is greedy, ``top_p`` keeps the likeliest mass."""

    temperature: Float[Array, ""]
    top_p: Float[Array, ""]

    @classmethod
    def of(cls, temperature: float, top_p: float) -> Sampling:
        """Check and convert; raises ``ValueError`` for values without meaning."""
        if temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"temperature must be >= 0 and top_p in (0, 1], got {temperature} and {top_p}"
            )
        return cls(jnp.float32(temperature), jnp.float32(top_p))


class Generation(struct.PyTreeNode):
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
    static_argnames=("config", "steps", "end_tokens", "kernels"),
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
    kernels: Kernels = Kernels(),  # noqa: B008 (frozen)
) -> tuple[Int[Array, "steps"], Int[Array, ""], Generation]:
    """Make up to ``limit`` tokens in one program; stops after an end token.

    Args:
        weights: the decoder's parameters.
        limit: at most ``steps``, which is static. The cache must have as many free slots.

    Returns:
        The tokens, how many of them are real, and the state to go on from. The end token is in
        the tokens and in the cache.
    """
    dtype = jax.tree.leaves(weights)[0].dtype
    ends = jnp.array(end_tokens, jnp.int32)

    def unfinished(carry):
        _, made, state = carry
        return (made < limit) & ~state.finished

    def step(carry):
        tokens, made, state = carry
        key, subkey = jax.random.split(state.key)
        token = sample(state.logits, sampling, subkey)
        own, token = held(weights, token) if kernels.held else (weights, token)
        decoder = Decoder(config, dtype, kernels).bind({"params": own})
        positions = text_positions(state.position, 1)
        hidden, cache = decoder(decoder.embed(token[None]), positions, state.cache)
        logits = decoder.logits(hidden)[0]
        state = Generation(cache, logits, state.position + 1, key, jnp.isin(token, ends))
        return tokens.at[made].set(token), made + 1, state

    tokens = jnp.zeros(steps, jnp.int32)
    return jax.lax.while_loop(unfinished, step, (tokens, jnp.int32(0), generation))


def complete(
    params: Params,
    generation: Generation,
    sampling: Sampling,
    max_new_tokens: int,
    on_text: Callable[[str], None] | None = None,
) -> tuple[str, list[int], Generation]:
    """Generate until an end token or ``max_new_tokens``; ``on_text`` gets the text piece by piece.

    Returns:
        The text, the token ids (an end token included), and the generation as it ended.
    """
    ids: list[int] = []
    kernels = Kernels.of(params.weights)
    text = TextPieces(params.tokenizer, on_text)
    while len(ids) < max_new_tokens and not bool(generation.finished):
        tokens, made, generation = generate_tokens(
            params.weights["text"],
            generation,
            sampling,
            jnp.int32(min(max_new_tokens - len(ids), DECODE_BLOCK)),
            config=params.config.text,
            steps=DECODE_BLOCK,
            end_tokens=end_tokens(params.tokenizer),
            kernels=kernels,
        )
        ids += np.asarray(tokens)[: int(made)].tolist()
        text.update(ids)
    return text.finish(ids), ids, generation


class TextPieces:
    """Turns a growing list of token ids into text piece by piece, whole characters at a time."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None] | None):
        self._tokenizer, self._on_text = tokenizer, on_text
        self._said = 0

    def update(self, ids: list[int]) -> None:
        """Say what is new, unless it ends inside a character."""
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        # The first bytes of a character that is spread over tokens decode to this sign.
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._say(text)

    def finish(self, ids: list[int]) -> str:
        """Say the rest, whatever it is, and return the whole."""
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        self._say(text)
        return text

    def _say(self, text: str) -> None:
        if self._on_text and len(text) > self._said:
            self._on_text(text[self._said :])
        self._said = len(text)


def end_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Ids after which the model has said all: end of turn, end of text."""
    return tuple(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))
