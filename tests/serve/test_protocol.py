"""Requests for chat completions: what is accepted, and what is refused by name."""

from __future__ import annotations

import base64

import pytest

from omnizip_jax.serve.errors import RequestError
from omnizip_jax.serve.protocol import read_base64, read_chat
from tests.serve.conftest import LIMITS

QUESTION = {"type": "text", "text": "What happens?"}
VIDEO = {"type": "video_url", "video_url": {"url": "clip.mp4"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}


def user(*content):
    return {"role": "user", "content": list(content)}


def read(*content, **fields):
    """A request with one message of the user."""
    return read_chat({"messages": [user(*content)], **fields}, LIMITS)


@pytest.mark.parametrize(
    ("field", "refused", "harmless"),
    [
        ("n", 2, 1),
        ("best_of", 2, 1),
        ("logprobs", True, False),
        ("top_logprobs", 3, 0),
        ("response_format", {"type": "json_object"}, {"type": "text"}),
        ("response_format", {"type": "json_schema", "json_schema": {}}, None),
        ("structured_outputs", {"choice": ["A", "B"]}, None),
        ("guided_choice", ["A", "B"], None),
        ("tools", [{"type": "function", "function": {"name": "f"}}], []),
        ("tool_choice", "required", "auto"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}, "none"),
        ("functions", [{"name": "f"}], []),
        ("function_call", {"name": "f"}, "none"),
        ("modalities", ["text", "audio"], ["text"]),
        ("audio", {"voice": "alloy", "format": "wav"}, None),
        ("prediction", {"type": "content", "content": "x"}, None),
        ("frequency_penalty", 1.5, 0),
        ("presence_penalty", -1, 0.0),
        ("repetition_penalty", 1.1, 1.0),
        ("logit_bias", {"50256": -100}, {}),
        ("top_k", 20, -1),
        ("min_p", 0.1, 0),
        ("min_tokens", 5, 0),
        ("reasoning_effort", "high", "none"),
        ("verbosity", "low", "medium"),
        ("enable_thinking", True, False),
        ("use_audio_in_video", False, True),
        ("stop_token_ids", [1], []),
        ("ignore_eos", True, False),
        ("echo", True, False),
        ("fps", 0.5, 2.0),
        ("media_io_kwargs", {"video": {"num_frames": 8}}, {}),
    ],
)
def test_fields_that_are_not_supported_are_refused_by_name(field, refused, harmless):
    with pytest.raises(RequestError, match=field) as error:
        read(QUESTION, **{field: refused})
    assert error.value.status == 400 and error.value.param == field
    for value in (harmless, None):
        assert read(QUESTION, **{field: value}) == read(QUESTION)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"mm_processor_kwargs": {"fps": 0.5}}, "mm_processor_kwargs.fps"),
        ({"mm_processor_kwargs": {"max_pixels": 100_352}}, "mm_processor_kwargs.max_pixels"),
        ({"omnizip": {"keep": 0.35}}, "omnizip.keep"),
        ({"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous"),
    ],
)
def test_nested_fields_that_are_not_supported_are_refused_by_name(fields, param):
    with pytest.raises(RequestError, match=param.rpartition(".")[2]) as error:
        read(VIDEO, QUESTION, **fields)
    assert error.value.param.startswith(param)


def test_settings_of_a_clip_are_refused_by_name():
    for part in ({**VIDEO, "fps": 1}, {"type": "video_url", "video_url": {"url": "", "fps": 1}}):
        with pytest.raises(RequestError, match=r"messages\[0\]\.content\[0\]\.\S*fps must be 2"):
            read(part, QUESTION)
    assert read({**VIDEO, "fps": 2.0}, QUESTION) == read(VIDEO, QUESTION)


def test_unknown_fields_are_ignored():
    assert read(QUESTION, user="me", metadata={"a": "b"}, anything=[1]) == read(QUESTION)


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
def test_media_are_refused_outside_the_first_message_of_the_user(role):
    messages = [user(QUESTION), {"role": role, "content": [VIDEO]}, user(QUESTION)]
    with pytest.raises(RequestError, match=rf"holds a clip, but the role is {role}"):
        read_chat({"messages": messages}, LIMITS)


@pytest.mark.parametrize("answer", [{"content": None}, {"content": []}, {"content": ""}, {}])
def test_an_assistant_message_may_have_no_content(answer):
    messages = [user(VIDEO, QUESTION), {"role": "assistant", **answer}, user(QUESTION)]
    chat = read_chat({"messages": messages}, LIMITS)
    assert chat.answer.history == (("What happens?", ""),)


@pytest.mark.parametrize("message", [{"content": None}, {"content": []}, {}, {"content": 0}])
def test_other_messages_need_content(message):
    with pytest.raises(RequestError, match=r"messages\[0\]\.content must be a text or a list"):
        read_chat({"messages": [{"role": "user", **message}]}, LIMITS)


@pytest.mark.parametrize("name", ["tool_calls", "function_call", "audio"])
def test_calls_in_the_history_are_refused_by_name(name):
    answer = {"role": "assistant", "content": None}
    messages = [user(QUESTION), {**answer, name: {"id": "a"}}, user(QUESTION)]
    with pytest.raises(RequestError, match=rf"messages\[1\]\.{name} is not supported"):
        read_chat({"messages": messages}, LIMITS)
    messages[1] = {**answer, name: None}
    assert read_chat({"messages": messages}, LIMITS).answer.history


def test_parts_may_be_plain_strings():
    assert read("Before.", VIDEO, "Why?") == read(
        {"type": "text", "text": "Before."}, VIDEO, {"type": "text", "text": "Why?"}
    )
    assert read({"type": "video_url", "video_url": "clip.mp4"}, QUESTION) == read(VIDEO, QUESTION)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AAAA"}},
        {"type": "video", "video": ["data:image/jpeg;base64,AAAA"]},
        {"type": "input_image", "image_url": "x"},
    ],
)
def test_images_and_lists_of_frames_are_told_what_to_send(part):
    with pytest.raises(RequestError, match="as a video file, for example mp4"):
        read(part, QUESTION)


def test_more_tokens_than_the_limit_are_clamped():
    for name in ("max_tokens", "max_completion_tokens"):
        for tokens, used in ((7, 7), (LIMITS.tokens + 1, LIMITS.tokens), (10**9, LIMITS.tokens)):
            answer = read(QUESTION, **{name: tokens}).answer
            assert answer.sampling_params.max_new_tokens == used
    for tokens in (0, -1, 1.5, "8", True):
        with pytest.raises(RequestError, match="max_tokens must be an integer from 1 to 64"):
            read(QUESTION, max_tokens=tokens)


def test_audio_is_chosen_for_each_video():
    def used(flags, *parts):
        chat = read(*parts, QUESTION, mm_processor_kwargs={"use_audio_in_video": flags})
        return [medium.use_audio for medium in chat.media]

    assert used(False, VIDEO, AUDIO, VIDEO) == [False, True, False]
    assert used([True, False], VIDEO, AUDIO, VIDEO) == [True, True, False]
    assert used([False], VIDEO) == [False] and used(None, VIDEO) == [True]
    for flags in ([True], [True, False, True], [], [1, 0], "no", 1):
        with pytest.raises(RequestError, match="for each of 2 videos"):
            used(flags, VIDEO, AUDIO, VIDEO)


def test_the_number_of_clips_is_bounded():
    messages = [user(*[VIDEO] * LIMITS.messages), user(VIDEO, QUESTION)]
    with pytest.raises(RequestError, match="65 clips, at most 64 are accepted"):
        read_chat({"messages": messages}, LIMITS)


def test_base64_may_have_line_breaks():
    data = bytes(range(256))
    assert read_base64(base64.encodebytes(data).decode(), "data") == data
    for text in ("%", "A", "é", None, 3, b"AAAA"):
        with pytest.raises(RequestError, match=r"data (is not|must be a text in) base64"):
            read_base64(text, "data")
