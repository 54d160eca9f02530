"""What a request for a chat completion asks for, in OpenAI's shape."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from omnizip_jax.compression import METHODS, Method
from omnizip_jax.inference.chat_template import DEFAULT_SYSTEM
from omnizip_jax.inference.decode import SamplingParams
from omnizip_jax.serve.failure import Failure
from omnizip_jax.serve.limits import Limits
from omnizip_jax.serve.requests import Asking, Said

_TOKENS = 256  # of an answer, unless told
_STOPS = 4  # words that may end an answer


@dataclasses.dataclass(frozen=True)
class Medium:
    """A clip that a message names.

    Attributes:
        kind: "video_url", "audio_url" or "input_audio".
        url: where it is; of ``input_audio``, its bytes in base64.
        use_audio: whether its sound counts.
    """

    kind: str
    url: str
    use_audio: bool = True

    @property
    def use_video(self) -> bool:
        return self.kind == "video_url"


@dataclasses.dataclass(frozen=True)
class Chat:
    """A request, read.

    Attributes:
        model: as it was asked for, or None.
        parts: what stands before the first question: texts, and numbers of ``media``.
        media: in their order.
        system: the system prompt.
        asking: questions, earlier answers, and how the next one is made.
        method: None for the server's own.
        max_frames: of each clip, at most; None: 2 a second.
        stream, include_usage: in pieces; with the usage at the end.
    """

    model: str | None
    parts: tuple[str | int, ...]
    media: tuple[Medium, ...]
    system: str
    asking: Asking
    method: Method | None
    max_frames: int | None
    stream: bool
    include_usage: bool

    @property
    def media_kinds(self) -> tuple[tuple[bool, bool], ...]:
        """What is used of each medium: sound, and pictures."""
        return tuple((medium.use_audio, medium.use_video) for medium in self.media)


def read_chat(body: Any, limits: Limits) -> Chat:
    """Check and sort a request; fields that are not known are ignored.

    Raises:
        Failure: what is known is wrong, or exceeds a limit.
    """
    if not isinstance(body, Mapping):
        raise Failure(f"the body must be a JSON object, got {_shown(body)}")
    extra = _part(body, "omnizip")
    kwargs = _part(body, "mm_processor_kwargs")
    use_audio = _flag(kwargs, "use_audio_in_video", True)
    if body.get("n", 1) not in (1, None):
        raise Failure(f"n must be 1, got {_shown(body['n'])}", param="n")
    system, turns = _turns(body.get("messages"), limits, use_audio)
    parts, media, question, history = _first_turn(turns)
    max_frames = extra.get("max_frames")
    if max_frames is not None and (not _is_count(max_frames) or max_frames < 2):
        raise Failure(
            f"max_frames must be an integer from 2, got {_shown(max_frames)}",
            param="omnizip.max_frames",
        )
    model = body.get("model")
    if not isinstance(model, str | None):
        raise Failure(f"model must be a text, got {_shown(model)}", param="model")
    return Chat(
        model=model,
        parts=parts,
        media=media,
        system=system,
        asking=Asking(question, history, read_decoding(body, limits), _stops(body.get("stop"))),
        method=read_method(extra),
        max_frames=max_frames,
        stream=_flag(body, "stream", False),
        include_usage=_flag(_part(body, "stream_options"), "include_usage", False),
    )


def read_decoding(body: Mapping[str, Any], limits: Limits) -> SamplingParams:
    """How an answer is made: greedily, unless there is a temperature.

    Raises:
        Failure: a value without meaning, or too many tokens.
    """
    name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    tokens = body.get(name)
    tokens = min(_TOKENS, limits.tokens) if tokens is None else tokens
    if not _is_count(tokens) or not 1 <= tokens <= limits.tokens:
        raise Failure(
            f"{name} must be an integer from 1 to {limits.tokens}, got {_shown(tokens)}", param=name
        )
    given = {name: body.get(name) for name in ("temperature", "top_p", "seed")}
    given = {name: value for name, value in given.items() if value is not None}
    if _is_count(given.get("seed")):
        given["seed"] %= 2**32  # OpenAI's may be negative and of 64 bits
    try:
        return SamplingParams(tokens, **given)
    except (ValueError, OverflowError) as error:
        raise Failure(str(error), param=next(iter(given))) from error


def read_method(extra: Mapping[str, Any]) -> Method | None:
    """The method that the field ``omnizip`` names, with its settings; None if it names none.

    Raises:
        Failure: it is unknown, or a setting is.
    """
    name, settings = extra.get("method"), _part(extra, "settings", "omnizip.settings")
    if name is None:
        if settings:
            raise Failure("settings need the method that they are for", param="omnizip.method")
        return None
    if not isinstance(name, str) or name not in METHODS:
        raise Failure(
            f"method must be one of {', '.join(METHODS)}, got {_shown(name)}",
            param="omnizip.method",
        )
    kind = METHODS[name]
    known = [field.name for field in dataclasses.fields(kind)]
    for key, value in settings.items():
        plain = value is None or isinstance(value, str | int | float)
        if key not in known or not plain:
            raise Failure(
                f"{name} has the settings {', '.join(known) or '(none)'}, each a number, a text, "
                f"true or false; got {_shown({key: value})}",
                param=f"omnizip.settings.{key}",
            )
    try:
        return kind(**settings)
    except (ValueError, TypeError, OverflowError) as error:
        raise Failure(str(error), param="omnizip.settings") from error


def check_text(text: Any, param: str, limits: Limits) -> str:
    """A text that is not too long.

    Raises:
        Failure: it is none, or too long, or half a character.
    """
    if not isinstance(text, str):
        raise Failure(f"{param} must be a text, got {_shown(text)}", param=param)
    if len(text) > limits.text:
        raise Failure(
            f"{param} has {len(text)} characters, at most {limits.text} are taken", param=param
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Failure(f"{param} holds half a character (a lone surrogate)", param=param) from error
    return text


def _turns(
    messages: Any, limits: Limits, use_audio: bool
) -> tuple[str, list[tuple[str, list[str | Medium]]]]:
    """The system prompt, and what was said: role and parts, the same role never twice in a row."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise Failure(f"messages must be a list, got {_shown(messages)}", param="messages")
    if len(messages) > limits.messages:
        raise Failure(
            f"{len(messages)} messages, at most {limits.messages} are taken", param="messages"
        )
    systems: list[str] = []
    turns: list[tuple[str, list[str | Medium]]] = []
    for i, message in enumerate(messages):
        param = f"messages[{i}]"
        if not isinstance(message, Mapping):
            raise Failure(f"{param} must be an object, got {_shown(message)}", param=param)
        role = message.get("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise Failure(
                f"{param}.role must be system, developer, user or assistant, got {_shown(role)}",
                param=f"{param}.role",
            )
        content = _content(message.get("content"), f"{param}.content", limits, use_audio)
        if role in ("system", "developer"):
            systems += [part for part in content if isinstance(part, str)]
        elif turns and turns[-1][0] == role:
            turns[-1][1].extend(content)
        else:
            turns.append((role, content))
    length = sum(len(part) for _, parts in turns for part in parts if isinstance(part, str))
    if length + sum(map(len, systems)) > limits.text:
        raise Failure(
            f"the messages have {length} characters, at most {limits.text} are taken",
            param="messages",
        )
    return "\n".join(systems) or DEFAULT_SYSTEM, turns


def _content(content: Any, param: str, limits: Limits, use_audio: bool) -> list[str | Medium]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or not content or len(content) > limits.messages:
        raise Failure(
            f"{param} must be a text or a list of 1 to {limits.messages} parts, got "
            f"{_shown(content)}",
            param=param,
        )
    found: list[str | Medium] = []
    for i, part in enumerate(content):
        here = f"{param}[{i}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            found.append(check_text(part.get("text"), f"{here}.text", limits))
        elif kind in ("video_url", "audio_url"):
            url = _part(part, kind, f"{here}.{kind}").get("url")
            if not isinstance(url, str):
                raise Failure(f"{here}.{kind}.url must be a text, got {_shown(url)}", param=here)
            found.append(Medium(kind, url, use_audio or kind == "audio_url"))
        elif kind == "input_audio":
            data = _part(part, kind, f"{here}.{kind}").get("data")
            if not isinstance(data, str):
                raise Failure(f"{here}.{kind}.data must be base64, got {_shown(data)}", param=here)
            found.append(Medium(kind, data))
        else:
            raise Failure(
                f"{here} must be of type text, video_url, audio_url or input_audio, got "
                f"{_shown(kind)}",
                param=here,
            )
    return found


def _first_turn(
    turns: list[tuple[str, list[str | Medium]]],
) -> tuple[tuple[str | int, ...], tuple[Medium, ...], str, tuple[Said, ...]]:
    """What stands before the first question, the media, the last question, and what was said."""
    if not turns or turns[0][0] != "user" or turns[-1][0] != "user":
        raise Failure("a conversation begins and ends with a message of the user", param="messages")
    for role, parts in turns[1:]:
        if any(isinstance(part, Medium) for part in parts):
            raise Failure(
                f"media belong to the first message of the user, not behind it ({role}): begin a "
                "new conversation with them",
                param="messages",
            )
    parts, media, words = _split(turns[0][1])
    texts = [words, *("\n".join(p for p in said if isinstance(p, str)) for _, said in turns[1:])]
    for text in texts[::2]:
        if not text.strip():
            raise Failure("a message of the user has no text to answer", param="messages")
    return parts, media, texts[-1], tuple(zip(texts[:-1:2], texts[1::2], strict=True))


def _split(content: list[str | Medium]) -> tuple[tuple[str | int, ...], tuple[Medium, ...], str]:
    """What stands before a question, its media, the question: the texts behind the last medium.

    If there is none behind it, the last text before it is the question.
    """
    places = [i for i, part in enumerate(content) if isinstance(part, Medium)]
    after = content[places[-1] + 1 :] if places else content
    before = content[: len(content) - len(after)]
    if not any(str(text).strip() for text in after):
        texts = [i for i, part in enumerate(before) if isinstance(part, str)]
        if texts:
            after = [before.pop(texts[-1])]
    media = tuple(part for part in before if isinstance(part, Medium))
    numbers = iter(range(len(media)))
    parts = tuple(part if isinstance(part, str) else next(numbers) for part in before)
    return parts, media, "\n".join(text for text in after if isinstance(text, str))


def _stops(stop: Any) -> tuple[str, ...]:
    words = [stop] if isinstance(stop, str) else [] if stop is None else stop
    good = isinstance(words, Sequence) and len(words) <= _STOPS
    if not good or not all(isinstance(word, str) and 0 < len(word) <= 256 for word in words):
        raise Failure(
            f"stop must be a text or up to {_STOPS} of them, got {_shown(stop)}", param="stop"
        )
    return tuple(words)


def _part(body: Mapping[str, Any], name: str, param: str | None = None) -> Mapping[str, Any]:
    """An object inside an object; none is an empty one."""
    part = body.get(name)
    if not isinstance(part, Mapping | None):
        raise Failure(f"{param or name} must be an object, got {_shown(part)}", param=param or name)
    return part or {}


def _flag(body: Mapping[str, Any], name: str, default: bool) -> bool:
    flag = body.get(name)
    if not isinstance(flag, bool | None):
        raise Failure(f"{name} must be true or false, got {_shown(flag)}", param=name)
    return default if flag is None else flag


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A value as JSON, cut to a line."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."
