"""Several answers side by side: one program makes the next tokens of all of them.

A decoder that makes a token reads all its weights for it; with lanes it reads them once for a token
of every lane. An answer takes a lane for one step, and whoever likes takes it for the next: its
cache stays where it is, so joining and leaving copy nothing and need no memory of their own.

    replies = [begin(params, context, question) for context, question in asked]
    while not all(reply.finished for reply in replies):
        replies = step_lanes(params, replies)
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence

import jax
import numpy as np

from omnizip_jax.decode import DECODE_BLOCK, end_tokens, generate_lanes
from omnizip_jax.models.params import Params
from omnizip_jax.reply import Reply, continued, limit, step

LANES = (8, 4, 2)  # of the programs that there are


def kind(reply: Reply) -> Hashable:
    """Equal for answers that one program can make: their caches have the same shapes."""
    reading, cache = reply.context.reading, reply.generation.cache
    leaves, structure = jax.tree.flatten(cache)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    return reading.config, reading.kernels, structure, shapes


def together(kinds: Sequence[Hashable]) -> list[int]:
    """Who goes with the first of those that wait: it, and the next ones of its kind.

    As many as the largest program that they fill; so nobody waits for a lane to be taken.
    """
    same = [number for number, other in enumerate(kinds) if other == kinds[0]]
    return same[: next((lanes for lanes in LANES if lanes <= len(same)), 1)]


def step_lanes(params: Params, replies: Sequence[Reply], tokens: int = DECODE_BLOCK) -> list[Reply]:
    """Make up to so many more tokens of every reply, in as few programs as their kinds allow.

    The tokens are those of ``reply.step`` one by one, but for rounding. The replies that are given
    in are used up; finished ones are returned as they are.

    Args:
        tokens: at most ``DECODE_BLOCK``.
    """
    done = list(replies)
    waiting = [number for number, reply in enumerate(replies) if not reply.finished]
    while waiting:
        kinds = [kind(replies[number]) for number in waiting]
        lanes = [waiting[place] for place in together(kinds)]
        stepped = _side_by_side(params, [replies[number] for number in lanes], tokens)
        for number, reply in zip(lanes, stepped, strict=True):
            done[number] = reply
        waiting = [number for number in waiting if number not in lanes]
    return done


def _side_by_side(params: Params, replies: list[Reply], tokens: int) -> list[Reply]:
    """One step of replies of one kind."""
    if len(replies) == 1:
        return [step(params, replies[0], tokens)]
    began, reading = time.perf_counter(), replies[0].context.reading
    new, made, generations = generate_lanes(
        params.weights["text"],
        [reply.generation for reply in replies],
        [reply.sampling for reply in replies],
        [limit(reply, tokens) for reply in replies],
        config=reading.config.text,
        steps=DECODE_BLOCK,
        end_tokens=end_tokens(params.tokenizer),
        kernels=reading.kernels,
    )
    return [
        continued(params, reply, generation, ids[:count], began)
        for reply, generation, ids, count in zip(
            replies, generations, np.asarray(new), np.asarray(made), strict=True
        )
    ]
