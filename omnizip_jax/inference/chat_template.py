"""The words of a conversation: what the tokenizer and the chat template make of them.

The template is rendered once for a whole turn, with a mark in place of every text of the user, and
split at the media. Only the template's own markup becomes control tokens: in the words of a
question or a system prompt ``<|im_end|>`` is ten characters of text.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from omnizip_jax.models.qwen2_5_omni import DEFAULT_SYSTEM
from omnizip_jax.models.registry import Config, family

__all__ = ["DEFAULT_SYSTEM", "Modalities", "Text", "closing", "segments"]


@dataclasses.dataclass(frozen=True)
class Modalities:
    """A place in a conversation where sound, pictures, or both stand."""

    audio: bool
    video: bool


@dataclasses.dataclass(frozen=True)
class Text:
    """Tokens between media, and their positions from where the text begins.

    End markers of a clip come first; a pair of them shares a position.
    """

    tokens: Int[np.ndarray, " T"]
    offsets: Int[np.ndarray, " T"]


def segments(
    tokenizer: Any, config: Config, parts: Sequence[str | Modalities], system: str = DEFAULT_SYSTEM
) -> list[Text]:
    """The texts before, between and after the media of one turn; start markers are left to media.

    Args:
        tokenizer: the checkpoint's, with its chat template.
        parts: the user's turn, in order; the last one is the question.

    Raises:
        ValueError: a text that is none, or a template that does not show the media.
    """
    media = [part for part in parts if isinstance(part, Modalities)]
    texts = [part for part in parts if not isinstance(part, Modalities)]
    check_question(parts[-1] if parts else None)
    for text in texts:
        _check_text("a part of the conversation", text)
    _check_text("the system prompt", system)
    mark = _unused(texts, system)
    content = [
        {"type": "text", "text": mark + str(i) + mark}
        if not isinstance(part, Modalities)
        else {"type": (kind := "video" if part.video else "audio"), kind: ""}
        for i, part in enumerate(parts)
    ]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": f"{mark}s{mark}"}]},
        {"role": "user", "content": content},
    ]
    words = {f"{mark}{i}{mark}": part for i, part in enumerate(parts) if isinstance(part, str)}
    words[f"{mark}s{mark}"] = system
    ids = _tokenize(tokenizer, _render(tokenizer, messages), words)
    places = np.flatnonzero(np.isin(ids, [config.audio_token, config.video_token]))
    if len(places) != len(media):
        raise ValueError(
            f"expected {len(media)} media placeholders in the rendered prompt, found "
            f"{len(places)}: the chat template does not fit the model"
        )
    out, start = [], 0
    for place, before, after in zip(
        [*places, len(ids)], [None, *media], [*media, None], strict=True
    ):
        # The template puts one marker on each side of a medium; the family knows them all.
        ends = () if before is None else _ends(config, before)
        text = ids[start + (before is not None) : place - (after is not None)]
        offsets = np.maximum(np.arange(len(ends) + len(text), dtype=np.int32) - (len(ends) > 1), 0)
        out.append(Text(np.concatenate([np.array(ends, np.int32), text]), offsets))
        start = place + 1
    return out


def question(tokenizer: Any, config: Config, text: str, closes: Modalities | None = None) -> Text:
    """A question that follows on what was said and shown; ``closes`` the clip that is open."""
    whole = segments(tokenizer, config, [Modalities(True, True), text])[-1]
    ends = len(_ends(config, Modalities(True, True)))
    tokens = whole.tokens[ends:]
    before = np.array(() if closes is None else _ends(config, closes), np.int32)
    offsets = np.arange(len(before) + len(tokens), dtype=np.int32) - (len(before) > 1)
    return Text(np.concatenate([before, tokens]), np.maximum(offsets, 0))


def closing(tokenizer: Any) -> Int[np.ndarray, " T"]:
    """What stands between an answer's end token and the user's next words."""
    mark = _unused([], "")
    messages = [
        {"role": role, "content": [{"type": "text", "text": f"{mark}{i}{mark}"}]}
        for i, role in enumerate(("system", "user", "assistant", "user"))
    ]
    text = _render(tokenizer, messages)
    between = text.partition(f"{mark}2{mark}")[2].partition(f"{mark}3{mark}")[0]
    return _tokenize(tokenizer, between, {})[1:]  # without the end token itself


def _ends(config: Config, modalities: Modalities) -> tuple[int, ...]:
    return family(config).end_markers(config, modalities.audio, modalities.video)


def check_question(question: Any) -> None:
    """Raise ``ValueError`` unless it is a text with something in it."""
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"the question must be a text, got {question!r}")


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a text, got {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} is not Unicode text but holds half a character (a lone surrogate): read it "
            f"as UTF-8, got {text!r}"
        ) from error


def _unused(texts: Sequence[str], system: str) -> str:
    """A character that no text holds (of Unicode's private area)."""
    return next(
        c for c in map(chr, range(0xE000, 0xF900)) if all(c not in t for t in (*texts, system))
    )


def _render(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    last = messages[-1]["role"] == "user"
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=last)


def _tokenize(tokenizer: Any, rendered: str, words: Mapping[str, str]) -> Int[np.ndarray, " T"]:
    """Tokens of a rendered template, its marks replaced by words that stay words."""
    added = tokenizer.get_added_vocab()
    control = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
    ids: list[int] = []
    for piece in re.split(f"({control})", rendered) if control else [rendered]:
        if piece in added:
            ids.append(added[piece])
            continue
        for mark, text in words.items():
            piece = piece.replace(mark, text)
        if piece:
            plain = tokenizer(piece, add_special_tokens=False, split_special_tokens=True)
            ids += plain["input_ids"]
    return np.array(ids, np.int32)
