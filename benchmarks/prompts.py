"""The prompt of one question about one clip, for benchmarks, experiments and tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int

from omnizip_jax.inference.chat_template import Modalities, segments
from omnizip_jax.models.registry import Config, family


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Token ids on both sides of one clip, markers included, and their positions.

    ``prefix_positions`` count from 0, ``suffix_positions`` from the position after the media.
    """

    prefix: Int[np.ndarray, " P"]
    prefix_positions: Int[np.ndarray, " P"]
    suffix: Int[np.ndarray, " S"]
    suffix_positions: Int[np.ndarray, " S"]


def build(
    tokenizer: Any,
    config: Config,
    question: str,
    *,
    audio: bool,
    video: bool,
    system: str | None = None,
) -> Prompt:
    """One question about one clip, split at the media; a prompt without media is all suffix.

    Args:
        audio, video: which of the two the clip has; neither makes a text-only prompt.

    Raises:
        ValueError: the question is not text.
    """
    if not (audio or video):
        (text,) = segments(tokenizer, config, [question], system)
        return Prompt(text.tokens[:0], text.offsets[:0], text.tokens, text.offsets)
    clip = Modalities(audio, video)
    before, after = segments(tokenizer, config, [clip, question], system)
    starts = np.array(family(config).start_markers(config, audio, video), np.int32)
    shared = np.full(len(starts), len(before.tokens), np.int32)
    return Prompt(
        np.concatenate([before.tokens, starts]),
        np.concatenate([before.offsets, shared]),
        after.tokens,
        after.offsets,
    )
