"""The words of a stream: what the chat template says before, between and after its videos."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from omnizip_jax import prompt as prompts
from omnizip_jax.stream_state import StreamSettings

if TYPE_CHECKING:
    from omnizip_jax.models.params import Params


def prefix_tokens(params: Params, settings: StreamSettings) -> Int[np.ndarray, " P"]:
    """The prompt up to where the first video, or a question without one, begins."""
    built = _prompt(params, settings, "?")
    return built.prefix[: -len(settings.start_tokens)]


def question_tokens(
    params: Params, settings: StreamSettings, question: str, in_video: bool
) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]]:
    """A question's tokens and their positions from 0; an open video is closed first."""
    built = _prompt(params, settings, question)
    ends = 0 if in_video else len(settings.start_tokens)
    positions = built.suffix_positions[ends:]
    return built.suffix[ends:], positions - positions[0]


def _prompt(params: Params, settings: StreamSettings, question: str) -> prompts.Prompt:
    return prompts.build(
        params.tokenizer,
        settings.model,
        question,
        audio=settings.audio,
        video=True,
        system=settings.system,
    )


def closing_tokens(params: Params) -> Int[np.ndarray, " T"]:
    """What stands between an answer's end token and the user's next words."""
    text = "\n<|im_start|>user\n"
    return np.asarray(params.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
