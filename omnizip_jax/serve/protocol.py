"""Requests for chat completions as OpenAI defines them; fields that live video shares with them."""

from __future__ import annotations

import base64
import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnizip_jax.compression import METHODS, Method
from omnizip_jax.inference.decode import SamplingParams
from omnizip_jax.serve.answer_steps import AnswerRequest, Exchange
from omnizip_jax.serve.config import Limits
from omnizip_jax.serve.errors import RequestError

_DEFAULT_TOKENS = 256  # of an answer
_MAX_STOP_STRINGS = 4
NO_IMAGES = "send images or a list of frames as a video file, for example mp4, in a video_url"
_TYPES = {Mapping: "an object", bool: "true or false", str: "a text"}
# Fields that are not supported, with the values that change nothing.
_UNSUPPORTED = tomllib.loads(
    Path(__file__).with_name("unsupported_fields.toml").read_text(encoding="utf-8")
)


@dataclasses.dataclass(frozen=True)
class Medium:
    """A clip in a message.

    Attributes:
        kind: "video_url", "audio_url" or "input_audio".
        url: its location; of ``input_audio`` its bytes in base64, or a data URL.
        use_audio: whether the audio of a video is used.
        is_pcm: whether it is 16 bit mono samples at 16 kHz without a header.
    """

    kind: str
    url: str
    use_audio: bool = True
    is_pcm: bool = False

    @property
    def use_video(self) -> bool:
        return self.kind == "video_url"


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A validated request for a chat completion.

    Attributes:
        model: name of the requested model, or None.
        parts: texts before the first question, and indices of ``media``.
        system: the system prompt; None: the model's default.
        answer: question, earlier exchanges and sampling parameters.
        method: None for the server's default.
        max_frames: of each clip; None: 2 per second.
        stream: answer with server-sent events; with ``include_usage`` the last has the usage.
    """

    model: str | None
    parts: tuple[str | int, ...]
    media: tuple[Medium, ...]
    system: str | None
    answer: AnswerRequest
    method: Method | None
    max_frames: int | None
    stream: bool
    include_usage: bool


def parse_object(text: str | bytes | bytearray, param: str) -> dict[str, Any]:
    """The JSON object that a text holds.

    Args:
        param: its name in messages.

    Raises:
        RequestError: the text is not JSON, or not an object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{param} must be a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise RequestError(f"{param} must be a JSON object, got {_shown(value)}")
    return value


def read_chat(body: Mapping[str, Any], limits: Limits) -> ChatRequest:
    """Validate a request for a chat completion.

    Unknown fields are ignored; known ones that are not supported are refused, see ``_UNSUPPORTED``.

    Raises:
        RequestError: a field is invalid or not supported, or exceeds a limit.
    """
    options = read_options(body, ("method", "settings", "max_frames"))
    stream_options = field(body, "stream_options", Mapping, {})
    refuse_unsupported(stream_options, {"continuous_usage_stats": (False,)}, "stream_options.")
    system, turns = _turns(body.get("messages"), limits)
    parts, media, question, history = _first_turn(turns)
    if len(media) > limits.media:
        raise RequestError(
            f"{len(media)} clips, at most {limits.media} are accepted", param="messages"
        )
    max_frames = options.get("max_frames")
    if max_frames is not None and (not _is_integer(max_frames) or max_frames < 2):
        raise RequestError(
            f"max_frames must be an integer from 2, got {_shown(max_frames)}",
            param="omnizip.max_frames",
        )
    return ChatRequest(
        model=field(body, "model", str, None),
        parts=parts,
        media=_with_audio_choice(media, field(body, "mm_processor_kwargs", Mapping, {})),
        system=system,
        answer=AnswerRequest(question, history, *read_answer_settings(body, limits)),
        method=read_method(options),
        max_frames=max_frames,
        stream=field(body, "stream", bool, False),
        include_usage=field(stream_options, "include_usage", bool, False),
    )


def refuse_unsupported(
    fields: Mapping[str, Any], unsupported: Mapping[str, Sequence[Any]], prefix: str = ""
) -> None:
    """Refuse fields by name unless they are null or have a value that changes nothing.

    Args:
        unsupported: for each field the values that change nothing.
        prefix: of the names in messages.

    Raises:
        RequestError: one of them has another value.
    """
    for name, harmless in unsupported.items():
        value = fields.get(name)
        if value is not None and value not in harmless:
            allowed = " or ".join(map(_shown, harmless))
            raise RequestError(
                f"{prefix}{name} {f'must be {allowed}' if allowed else 'is not supported'}, got "
                f"{_shown(value)}; leave it out",
                param=prefix + name,
            )


def read_options(body: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    """The field ``omnizip``, which may have these names only.

    Raises:
        RequestError: it is not an object, or has another name.
    """
    options = field(body, "omnizip", Mapping, {})
    for name in options:
        if name not in names:
            raise RequestError(
                f"omnizip has {', '.join(names)}, got {_shown(name)}", param=f"omnizip.{name}"
            )
    return options


def _with_audio_choice(
    media: tuple[Medium, ...], processor: Mapping[str, Any]
) -> tuple[Medium, ...]:
    """The media as ``mm_processor_kwargs`` has them: one flag for all videos, or one for each."""
    name = "mm_processor_kwargs.use_audio_in_video"
    videos = [medium for medium in media if medium.use_video]
    flags = processor.get("use_audio_in_video")
    flags = True if flags is None else flags
    flags = flags if isinstance(flags, list) else [flags] * len(videos) or [flags]
    if not all(isinstance(flag, bool) for flag in flags) or len(flags) != max(len(videos), 1):
        raise RequestError(
            f"{name} must be true, false, or a list of one of them for each of {len(videos)} "
            f"videos, got {_shown(processor['use_audio_in_video'])}",
            param=name,
        )
    choice = iter(flags)
    return tuple(
        dataclasses.replace(medium, use_audio=next(choice)) if medium.use_video else medium
        for medium in media
    )


def field(
    body: Mapping[str, Any], name: str, kind: type, default: Any, param: str | None = None
) -> Any:
    """A field of a JSON object, or the default if it is missing or null.

    Args:
        kind: ``Mapping``, ``bool`` or ``str``.
        param: its name in messages.

    Raises:
        RequestError: it has another type.
    """
    value = body.get(name)
    if not isinstance(value, kind | None):
        param = param or name
        raise RequestError(f"{param} must be {_TYPES[kind]}, got {_shown(value)}", param=param)
    return default if value is None else value


def read_answer_settings(
    fields: Mapping[str, Any], limits: Limits
) -> tuple[SamplingParams, tuple[str, ...]]:
    """Sampling parameters of an answer, greedy unless there is a temperature, and stop strings.

    More tokens than ``limits.tokens`` are reduced to it; the finish reason is then "length".

    Raises:
        RequestError: an invalid value, or a field that is not supported.
    """
    refuse_unsupported(fields, _UNSUPPORTED["request"])
    processor = field(fields, "mm_processor_kwargs", Mapping, {})
    unsupported = dict.fromkeys(processor.keys() - {"use_audio_in_video"}, ()) | {"fps": (2,)}
    refuse_unsupported(processor, unsupported, "mm_processor_kwargs.")
    name = "max_tokens" if fields.get("max_completion_tokens") is None else "max_completion_tokens"
    tokens = _DEFAULT_TOKENS if fields.get(name) is None else fields[name]
    if not _is_integer(tokens) or tokens < 1:
        raise RequestError(
            f"{name} must be an integer from 1 to {limits.tokens}, or more, of which "
            f"{limits.tokens} are used; got {_shown(tokens)}",
            param=name,
        )
    names = ("temperature", "top_p", "seed")
    given = {key: fields[key] for key in names if fields.get(key) is not None}
    if _is_integer(given.get("seed")):
        given["seed"] %= 2**32  # OpenAI's may be negative and has 64 bits
    try:
        sampling_params = SamplingParams(min(tokens, limits.tokens), **given)
    except (ValueError, OverflowError) as error:
        raise RequestError(str(error), param=next(iter(given))) from error
    return sampling_params, _stop_strings(fields.get("stop"))


def read_method(options: Mapping[str, Any]) -> Method | None:
    """The method in the field ``omnizip``, with its settings; None if none is named.

    Raises:
        RequestError: the method or a setting is unknown or invalid.
    """
    name = options.get("method")
    settings = field(options, "settings", Mapping, {}, "omnizip.settings")
    if name is None:
        if settings:
            raise RequestError("settings need omnizip.method, got none", param="omnizip.method")
        return None
    if not isinstance(name, str) or name not in METHODS:
        raise RequestError(
            f"method must be one of {', '.join(METHODS)}, got {_shown(name)}",
            param="omnizip.method",
        )
    known = [each.name for each in dataclasses.fields(METHODS[name])]
    for key, value in settings.items():
        if key not in known or not isinstance(value, str | int | float | None):
            raise RequestError(
                f"{name} has the settings {', '.join(known) or '(none)'}, each a number, a text, "
                f"true or false; got {_shown({key: value})}",
                param=f"omnizip.settings.{key}",
            )
    try:
        return METHODS[name](**settings)
    except (ValueError, TypeError, OverflowError) as error:
        raise RequestError(str(error), param="omnizip.settings") from error


def check_text(text: Any, param: str, limits: Limits) -> str:
    """Return a text that is valid and not too long.

    Raises:
        RequestError: it is not text, too long, or holds a lone surrogate.
    """
    if not isinstance(text, str):
        raise RequestError(f"{param} must be a text, got {_shown(text)}", param=param)
    if len(text) > limits.characters:
        raise RequestError(
            f"{param} has {len(text)} characters, at most {limits.characters} are accepted",
            param=param,
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{param} holds a lone surrogate", param=param) from error
    return text


def read_base64(text: Any, param: str) -> bytes:
    """The bytes of a text in base64, which may have line breaks and be a data URL.

    Raises:
        RequestError: it is not base64.
    """
    if not isinstance(text, str):
        raise RequestError(f"{param} must be a text in base64, got {_shown(text)}", param=param)
    try:
        text = text.partition(",")[2] if text[:5].lower() == "data:" else text
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise RequestError(f"{param} is not base64: {error}", param=param) from error


def _turns(
    messages: Any, limits: Limits
) -> tuple[str | None, list[tuple[str, list[str | Medium]]]]:
    """The system prompt, and the turns; consecutive messages of one role are merged."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise RequestError(f"messages must be a list, got {_shown(messages)}", param="messages")
    if len(messages) > limits.messages:
        raise RequestError(
            f"{len(messages)} messages, at most {limits.messages} are accepted", param="messages"
        )
    systems: list[str] = []
    turns: list[tuple[str, list[str | Medium]]] = []
    for i, message in enumerate(messages):
        param = f"messages[{i}]"
        if not isinstance(message, Mapping):
            raise RequestError(f"{param} must be an object, got {_shown(message)}", param=param)
        role = message.get("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise RequestError(
                f"{param}.role must be system, developer, user or assistant, got {_shown(role)}",
                param=f"{param}.role",
            )
        for name in ("tool_calls", "function_call", "audio"):
            if message.get(name):
                raise RequestError(
                    f"{param}.{name} is not supported: send the text of the message alone",
                    param=f"{param}.{name}",
                )
        content = message.get("content")
        if role == "assistant" and content in (None, []):
            content = ""
        content = _content(content, f"{param}.content", limits)
        texts = [part for part in content if isinstance(part, str)]
        if role != "user" and len(texts) < len(content):
            raise RequestError(
                f"{param}.content holds a clip, but the role is {role}: media must be in the first "
                "message of the user",
                param=f"{param}.content",
            )
        if role in ("system", "developer"):
            systems += texts
        elif turns and turns[-1][0] == role:
            turns[-1][1].extend(content)
        else:
            turns.append((role, content))
    texts = [part for _, parts in turns for part in parts if isinstance(part, str)]
    check_text("".join(systems + texts), "messages", limits)
    return "\n".join(systems) or None, turns


def _content(content: Any, param: str, limits: Limits) -> list[str | Medium]:
    """The texts and media of a message."""
    if isinstance(content, str):
        content = [content]
    if not isinstance(content, Sequence) or not 1 <= len(content) <= limits.messages:
        raise RequestError(
            f"{param} must be a text or a list of 1 to {limits.messages} parts, got "
            f"{_shown(content)}",
            param=param,
        )
    return [_part(part, f"{param}[{i}]", limits) for i, part in enumerate(content)]


def _part(part: Any, path: str, limits: Limits) -> str | Medium:
    """A text or a medium of a message."""
    if isinstance(part, str):
        return check_text(part, path, limits)
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return check_text(part.get("text"), f"{path}.text", limits)
    if kind not in ("video_url", "audio_url", "input_audio"):
        raise RequestError(
            f"{path} must be of type text, video_url, audio_url or input_audio, got "
            f"{_shown(kind)}; {NO_IMAGES}",
            param=path,
        )
    name = "data" if kind == "input_audio" else "url"
    medium = part.get(kind)
    medium = {name: medium} if isinstance(medium, str) else field(part, kind, Mapping, {}, path)
    for fields, prefix in ((part, path), (medium, f"{path}.{kind}")):
        refuse_unsupported(fields, _UNSUPPORTED["clip"], f"{prefix}.")
    url = medium.get(name)
    if not isinstance(url, str):
        raise RequestError(f"{path}.{kind}.{name} must be a text, got {_shown(url)}", param=path)
    is_pcm = kind == "input_audio" and medium.get("format") in ("pcm16", "pcm")
    return Medium(kind, url, is_pcm=is_pcm)


def _first_turn(
    turns: list[tuple[str, list[str | Medium]]],
) -> tuple[tuple[str | int, ...], tuple[Medium, ...], str, tuple[Exchange, ...]]:
    """The parts before the first question, the media, the last question, the exchanges before."""
    if not turns or turns[0][0] != "user" or turns[-1][0] != "user":
        message = "a conversation must begin and end with a message of the user"
        raise RequestError(message, param="messages")
    for role, content in turns[1:]:
        if any(isinstance(part, Medium) for part in content):
            raise RequestError(
                f"media must be in the first message of the user, got some after it ({role}): "
                "begin a new conversation with them",
                param="messages",
            )
    parts, media, question = _split(turns[0][1])
    later = ("\n".join(part for part in turn if isinstance(part, str)) for _, turn in turns[1:])
    texts = [question, *later]
    if not all(text.strip() for text in texts[::2]):
        raise RequestError("a message of the user has no text to answer", param="messages")
    return parts, media, texts[-1], tuple(zip(texts[:-1:2], texts[1::2], strict=True))


def _split(content: list[str | Medium]) -> tuple[tuple[str | int, ...], tuple[Medium, ...], str]:
    """The parts before a question, their media, and the question: the texts after the last medium.

    Without text after it, the last text before it is the question.
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


def _stop_strings(stop: Any) -> tuple[str, ...]:
    strings = [stop] if isinstance(stop, str) else [] if stop is None else stop
    valid = isinstance(strings, Sequence) and len(strings) <= _MAX_STOP_STRINGS
    if not valid or not all(isinstance(s, str) and 0 < len(s) <= 256 for s in strings):
        raise RequestError(
            f"stop must be a text or up to {_MAX_STOP_STRINGS} of them, got {_shown(stop)}",
            param="stop",
        )
    return tuple(strings)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A value as JSON, at most one line."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."
