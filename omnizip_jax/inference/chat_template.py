"""Text of a conversation to token ids, by the tokenizer and its chat template.

The template is rendered once for a whole turn, with a placeholder for each text of the user, and
split at the media. Only the template's own markup becomes control tokens: in a question or a system
prompt ``<|im_end|>`` is ten characters of text.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from omnizip_jax.models.registry import Config, family


@dataclasses.dataclass(frozen=True)
class Modalities:
    """A medium in a conversation: audio, video, or both."""

    audio: bool
    video: bool


@dataclasses.dataclass(frozen=True)
class Text:
    """Tokens between media, and their positions relative to the beginning of the text."""

    tokens: Int[np.ndarray, " T"]
    offsets: Int[np.ndarray, " T"]

    @classmethod
    def after(cls, clip: Modalities | None, tokens: Int[np.ndarray, " T"], config: Config) -> Text:
        """The end markers of a clip (or None), and tokens after them."""
        own = family(config)
        ends = () if clip is None else own.end_markers(config, clip.audio, clip.video)
        shared = own.MARKERS_SHARE_POSITION and len(ends) > 1
        offsets = np.arange(len(ends) + len(tokens), dtype=np.int32) - shared
        return cls(np.concatenate([np.array(ends, np.int32), tokens]), np.maximum(offsets, 0))


def segments(
    tokenizer: Any,
    config: Config,
    parts: Sequence[str | Modalities],
    system: str | None = None,
) -> list[Text]:
    """The texts before, between and after the media of one turn, without their start markers.

    Args:
        tokenizer: the checkpoint's, with its chat template.
        parts: the user's turn, in order; the last one is the question.
        system: the system prompt; None: the family's default, "" none. Without a default and a
            prompt there is no system turn.

    Raises:
        ValueError: a text that is not Unicode, or a template without placeholders for media.
    """
    default: str | None = family(config).DEFAULT_SYSTEM
    system = (default or "") if system is None else system
    media = [part for part in parts if isinstance(part, Modalities)]
    texts = [part for part in parts if not isinstance(part, Modalities)]
    check_question(parts[-1] if parts else None)
    for text in texts:
        _check_text("a part of the conversation", text)
    _check_text("the system prompt", system)
    mark = _unused([*texts, system])
    content = [
        {"type": "text", "text": mark + str(i) + mark}
        if not isinstance(part, Modalities)
        else {"type": (kind := "video" if part.video else "audio"), kind: ""}
        for i, part in enumerate(parts)
    ]
    messages = [{"role": "user", "content": content}]
    if system or default is not None:  # else the template might write a default of its own
        instruction = [{"type": "text", "text": f"{mark}s{mark}"}]
        messages.insert(0, {"role": "system", "content": instruction})
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
        # The template puts one marker on each side of a medium; the family has all of them.
        text = ids[start + (before is not None) : place - (after is not None)]
        out.append(Text.after(before, text, config))
        start = place + 1
    return out


def question(tokenizer: Any, config: Config, text: str, closes: Modalities | None = None) -> Text:
    """A question that continues a conversation; ``closes`` is the open clip."""
    clip = Modalities(True, True)
    ends = Text.after(clip, np.array([], np.int32), config).tokens
    tokens = segments(tokenizer, config, [clip, text])[-1].tokens[len(ends) :]
    return Text.after(closes, tokens, config)


def closing(tokenizer: Any) -> Int[np.ndarray, " T"]:
    """Tokens between an answer and the user's next text, the end of the turn first."""
    mark = _unused([])
    messages = [
        {"role": role, "content": [{"type": "text", "text": f"{mark}{i}{mark}"}]}
        for i, role in enumerate(("system", "user", "assistant", "user"))
    ]
    text = _render(tokenizer, messages)
    between = text.partition(f"{mark}2{mark}")[2].partition(f"{mark}3{mark}")[0]
    return _tokenize(tokenizer, between, {})


def check_question(question: Any) -> None:
    """Raise ``ValueError`` unless it is a text that is not blank."""
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


def _unused(texts: Sequence[str]) -> str:
    """A character of Unicode's private area that no text contains."""
    return next(c for c in map(chr, range(0xE000, 0xF900)) if all(c not in t for t in texts))


def _render(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    last = messages[-1]["role"] == "user"
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=last)


def _tokenize(tokenizer: Any, rendered: str, words: Mapping[str, str]) -> Int[np.ndarray, " T"]:
    """Tokens of a rendered template whose placeholders are replaced by plain text."""
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
