"""The chat prompt around a video: what the tokenizer and the chat template make of a question.

The template puts a placeholder where the video goes. Everything before it is the prefix, everything
after it the suffix; the windows' tokens go in between. With sound, audio start and end tokens stand
inside the vision start and end tokens, and each of these two pairs shares one position.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int

from omnizip_jax.models.qwen2_5_omni.config import ModelConfig

DEFAULT_SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of "
    "perceiving auditory and visual inputs, as well as generating text and speech."
)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Token ids on both sides of the media, and their positions.

    ``prefix_positions`` count from 0, ``suffix_positions`` from the position after the media.
    """

    prefix: Int[np.ndarray, "P"]
    prefix_positions: Int[np.ndarray, "P"]
    suffix: Int[np.ndarray, "S"]
    suffix_positions: Int[np.ndarray, "S"]


def build(
    tokenizer: Any,
    config: ModelConfig,
    question: str,
    *,
    audio: bool,
    video: bool,
    system: str = DEFAULT_SYSTEM,
) -> Prompt:
    """Render the chat template for one question about one clip and split it at the media.

    A prompt without media is all suffix.

    Args:
        tokenizer: the checkpoint's, with its chat template.
        audio, video: which of the two the clip has; neither makes a text-only prompt.

    Raises:
        ValueError: the question is not text, or contains a media placeholder.
    """
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"the question must be a text, got {question!r}")
    for name, words in {"question": question, "system prompt": system}.items():
        try:
            words.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the {name} is not Unicode text: {words!r} ({error})") from None
    kind = "video" if video else "audio" if audio else None
    content = [{"type": kind, kind: ""}] if kind else []
    text = tokenizer.apply_chat_template(
        [
            {"role": "system", "content": [{"type": "text", "text": system}]},
            {"role": "user", "content": [*content, {"type": "text", "text": question}]},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
    places = np.flatnonzero(np.isin(ids, [config.audio_token, config.video_token]))
    if len(places) != (kind is not None):
        raise ValueError(
            f"expected {int(kind is not None)} media placeholder in the prompt, found "
            f"{len(places)}: take <|VIDEO|> and <|AUDIO|> out of the question and system prompt"
        )
    if kind is None:
        return Prompt(ids[:0], _count(0), ids, _count(len(ids)))
    prefix, suffix = ids[: places[0]], ids[places[0] + 1 :]
    paired = audio and video
    if paired:
        prefix = np.append(prefix, np.int32(config.audio_start_token))
        suffix = np.insert(suffix, 0, config.audio_end_token)
    prefix_positions, suffix_positions = _count(len(prefix)), _count(len(suffix))
    if paired:
        prefix_positions[-1] -= 1
        suffix_positions[1:] -= 1
    return Prompt(prefix, prefix_positions, suffix, suffix_positions)


def _count(length: int) -> Int[np.ndarray, "T"]:
    return np.arange(length, dtype=np.int32)
