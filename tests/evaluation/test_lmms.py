"""The model for lmms-eval with a stub of lmms-eval's interface, and the files of the tasks."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

import omnizip_jax
from omnizip_jax.compression import METHODS, AllTokens, OmniZipConfig
from omnizip_jax.evaluation.lmms import TASKS, task_questions
from omnizip_jax.evaluation.lmms.request_parsing import (
    MediaPart,
    make_method,
    parse_messages,
    parse_sampling,
    until_stop,
)
from omnizip_jax.evaluation.protocols import PROTOCOLS
from omnizip_jax.testbed.synthetic_clips import make_clip
from tests.media import make as make_media
from tests.test_imports import imports

PACKAGE = Path(omnizip_jax.__file__).parent


@dataclasses.dataclass
class ModelManifest:
    model_id: str
    chat_class_path: str


@dataclasses.dataclass
class TokenCounts:
    input_tokens: int
    output_tokens: int


@dataclasses.dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


class Hook:
    """Records the calls of lmms-eval's cache."""

    def __init__(self):
        self.seen: list[Any] = []

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.seen.append((attr, req, res))


class Model:
    """The used part of lmms-eval's base class."""

    is_simple = True
    rank = 0

    def __init__(self):
        self.cache_hook, self.task_dict, self.cleaned = Hook(), {}, False

    @staticmethod
    def _resolve_system_prompt(value: str) -> str:
        return value

    def clean(self) -> None:
        self.cleaned = True


class Request:
    """A request for a reply to one of the documents."""

    def __init__(self, doc: int, messages: Any, settings: dict[str, Any]):
        self.args = f"context {doc}", messages, settings, doc, "task", "test"


@pytest.fixture
def lmms_eval(monkeypatch):
    """A stub of lmms-eval; returns the arguments of ``log_metrics``."""
    logged: list[dict[str, Any]] = []
    modules = {
        "api.instance": {
            "GenerationResult": GenerationResult,
            "Instance": Request,
            "TokenCounts": TokenCounts,
        },
        "api.model": {"lmms": Model},
        "models.model_utils.gen_metrics": {"log_metrics": lambda **metrics: logged.append(metrics)},
        "models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, values in modules.items():
        path = f"lmms_eval.{name}"
        while path:
            if path not in sys.modules or sys.modules[path].__spec__ is not None:
                monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
            path = path.rpartition(".")[0]
        vars(sys.modules[f"lmms_eval.{name}"]).update(values)
    yield logged
    for name in ("model", "manifest"):
        sys.modules.pop(f"omnizip_jax.evaluation.lmms.{name}", None)


@pytest.fixture
def make(lmms_eval, small, monkeypatch):
    """A factory of the model with lmms-eval's arguments and the loaded small checkpoint."""
    manifest = importlib.import_module("omnizip_jax.evaluation.lmms.manifest").MANIFEST
    module, _, name = manifest.chat_class_path.rpartition(".")
    module = importlib.import_module(module)
    monkeypatch.setattr(module, "load", lambda checkpoint, dtype: small)

    def made(docs: list[Any] | None = None, **arguments: Any) -> Any:
        model = getattr(module, name)(
            **{"checkpoint": "small", "batch_size": "1", "device": "cuda:0", **arguments}
        )
        model.task_dict = {"task": {"test": docs or []}}
        return model

    return made


def messages_of(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """Messages as lmms-eval builds them from ``doc_to_visual`` and ``doc_to_text``."""
    content = [*doc["media"], {"type": "text", "text": doc["question"]}]
    return [{"role": "user", "content": content}]


def docs_of(questions: Any) -> list[dict[str, Any]]:
    return [
        {"media": [{"type": "video", "url": question.video}], "question": question.text}
        for question in questions
    ]


GREEDY = {"max_new_tokens": 4, "temperature": 0, "do_sample": False}


@pytest.mark.slow  # compiles the small model
def test_replies_are_those_of_generate(make, questions, small, lmms_eval, monkeypatch):
    there = [question for question in questions if question.id != "gone"][:4]
    model = make(docs_of(there), keep=0.45)
    module = sys.modules[type(model).__module__]
    read: list[str] = []

    def load(source: str, **more: Any) -> Any:
        read.append(source)
        return load_clip(source, **more)

    load_clip = module.load_clip
    monkeypatch.setattr(module, "load_clip", load)
    requests = [Request(number, messages_of, GREEDY) for number in range(len(there))]
    replies = list(model.generate_until(requests))
    assert read == list(dict.fromkeys(question.video for question in there))
    total = media = 0
    for question, reply in zip(there, replies, strict=True):
        answer = omnizip_jax.generate(
            small,
            question.video,
            question.text,
            compression=OmniZipConfig(keep=0.45),
            max_new_tokens=4,
        )
        assert reply.text == answer.text
        counts = answer.counts
        assert reply.token_counts == TokenCounts(counts.kept + counts.text, counts.generated)
        total, media = total + counts.kept, media + counts.media
    context, saved = requests[0].args[0], model.cache_hook.seen
    assert saved[0] == ("generate_until", (context, GREEDY), replies[0].text) and len(saved) == 4
    model.clean()
    assert model.cleaned
    (metrics,) = lmms_eval
    assert metrics["additional_metrics"]["kept_share"] == pytest.approx(total / media)
    assert metrics["additional_metrics"]["total_requests"] == 4
    assert metrics["total_gen_tokens"] == sum(reply.token_counts.output_tokens for reply in replies)


@pytest.mark.slow
def test_clips_as_streams(make, questions, caplog):
    docs = docs_of(questions[:2])
    whole = make(docs, method="all")
    stream = make(docs, method="all", stream=True, capacity=2048)
    requests = [Request(number, messages_of, GREEDY) for number in range(2)]
    for one, other in zip(
        *(model.generate_until(requests) for model in (whole, stream)), strict=True
    ):
        assert one.text == other.text
        assert one.token_counts == other.token_counts
    docs[0]["media"] *= 2
    with caplog.at_level(logging.ERROR):
        (reply,) = stream.generate_until(requests[:1])
    assert reply == GenerationResult("") and "one clip, followed by one question" in caplog.text
    with pytest.raises(ValueError, match="memory must be"):
        make(docs, stream=True, memory="none")


def test_replies_are_yielded_one_by_one(make, questions):
    """The cache has a reply before the next request is answered."""
    model = make(docs_of(questions[:2]), method="all")
    replies = iter(model.generate_until([Request(0, messages_of, GREEDY), Request(9, None, {})]))
    assert next(replies).text
    assert len(model.cache_hook.seen) == 1
    with pytest.raises(IndexError):
        next(replies)


def test_a_broken_video_is_an_empty_reply(make, questions, caplog):
    first, gone = questions[0], next(q for q in questions if q.id == "gone")
    model = make(docs_of([gone, first]), keep=0.45)
    with caplog.at_level(logging.ERROR):
        broken, whole = model.generate_until([Request(i, messages_of, GREEDY) for i in (0, 1)])
    assert broken == GenerationResult("") and whole.text
    assert "gone.mp4" in caplog.text


@pytest.fixture
def media(tmp_path):
    """Audio alone as file and as samples, a silent video, several clips, a part of one."""
    clip = make_clip(5)
    frames, fps, sound, rate = clip.arrays
    clip.write(tmp_path / "both.mp4")
    make_media.write(tmp_path / "silent.mkv", frames, fps=fps)
    both = {"type": "video", "url": str(tmp_path / "both.mp4")}
    samples = {"array": sound, "sampling_rate": rate}
    stereo = {"array": np.stack([sound, sound]), "sampling_rate": rate}
    return [
        [{"type": "audio", "url": samples}],
        [{"type": "video", "url": samples}],  # lmms-eval calls every dict a video
        [{"type": "audio", "url": stereo}],
        [{"type": "video", "url": str(tmp_path / "silent.mkv")}],
        [both],
        [both, {"type": "audio", "url": samples}],
        [both | {"start_time": 0.0, "end_time": 2.0}],
        [{"type": "video", "url": {"path": both["url"], "video_start": 0.0, "video_end": 2.0}}],
    ]


def test_clips_of_other_media(make, media, monkeypatch):
    """Modalities and windows of what is decoded; the model itself runs in the slow tier."""
    model = make([{"media": each, "question": "What?"} for each in media], method="all")
    read: list[list[tuple[bool, bool, int]]] = []

    def converse(params: Any, parts: Any, **settings: Any) -> Any:
        *clips, question = parts
        assert question == "What?"
        read.append([(c.has_audio, c.has_video, len(c.windows.mel_length)) for c in clips])
        raise ValueError("not asked")

    monkeypatch.setattr(sys.modules[type(model).__module__], "converse", converse)
    list(model.generate_until([Request(i, messages_of, GREEDY) for i in range(len(media))]))
    audio, silent, whole, part = (
        (True, False, 4),
        (False, True, 4),
        (True, True, 4),
        (True, True, 1),
    )
    assert read == [[audio]] * 3 + [[silent], [whole], [whole, audio], [part], [part]]


@pytest.mark.slow
def test_replies_to_other_media(make, media):
    question = "Was there a high tone?"
    docs = [{"media": each, "question": question} for each in media]
    model = make(docs, method="all")
    replies = list(
        model.generate_until([Request(i, messages_of, GREEDY) for i in range(len(docs))])
    )
    read = [reply.token_counts.input_tokens for reply in replies]
    alone, *more = read[:3]
    assert more == [alone, alone] and len({reply.text for reply in replies[:3]}) == 1
    silent, whole, twice, *parts = read[3:]
    assert alone < silent < whole < twice
    assert parts[0] == parts[1] < whole


def test_rounds(make, questions):
    docs = docs_of(questions[:1])
    asked: list[Any] = []

    def rounds(doc: Any, **settings: Any) -> Any:
        asked.append(settings)
        if not settings:
            return messages_of(doc)
        return messages_of(doc), settings["round_idx"] == 2, settings["previous_output"], "memory"

    model = make(docs, keep=0.45)
    (replies,) = model.generate_until_multi_round([Request(0, rounds, GREEDY)])
    assert len(replies) == 2 and replies[0] == replies[1]
    assert [settings.get("previous_round_info") for settings in asked] == [None, None, "memory"]
    assert asked[2]["previous_output"] == replies
    model = make(docs, keep=0.45)
    once = model.generate_until_multi_round([Request(0, lambda doc, **_: messages_of(doc), GREEDY)])
    assert [len(each) for each in once] == [1]


def test_stop_strings_and_loglikelihood(make, questions):
    (reply,) = make(docs_of(questions), keep=0.45).generate_until([Request(0, messages_of, GREEDY)])
    stop = {"until": ["", reply.text[1:3]]}
    (short,) = make(docs_of(questions), keep=0.45).generate_until(
        [Request(0, messages_of, GREEDY | stop)]
    )
    assert short.text == reply.text[:1]
    with pytest.raises(NotImplementedError, match="output_type is generate_until"):
        make().loglikelihood([])


@pytest.mark.parametrize(
    ("until", "text"),
    [
        ("\n\n", "a.b"),
        (["\n\n", "b"], "a."),
        (None, "a.b\n\nc"),
        ([], "a.b\n\nc"),
        ("", "a.b\n\nc"),
    ],
)
def test_a_stop_string_or_several(until, text):
    assert until_stop("a.b\n\nc", {"until": until}) == text


def test_a_device_for_each_process(make, monkeypatch):
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    make()
    assert not updates
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    make()
    assert updates == {"jax_cuda_visible_devices": "1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "some"}, "method=some: unknown; take one of"),
        (
            {"kept": 0.3},
            "kept: not an argument of the model, and not a setting of the method omnizip",
        ),
        ({"keep": "much"}, "keep"),
        ({"batch_size": 4}, "--batch_size 1, not 4"),
        ({"use_audio": "no"}, "use_audio must be True or False"),
        ({"grid_slots": -1}, "grid_slots"),
        ({"max_frames": 1}, "max_frames"),
    ],
)
def test_bad_arguments(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_settings():
    assert make_method("all", {}) == AllTokens()
    assert make_method("omnizip", {"keep": "None", "rho_audio": 0.4}) == OmniZipConfig(
        rho_audio=0.4
    )
    assert parse_sampling({}, 0).temperature == 0
    sampled = parse_sampling({"temperature": 0.7, "top_p": None, "num_beams": 1}, 3)
    assert (sampled.temperature, sampled.top_p, sampled.seed) == (0.7, 1.0, 3)
    assert parse_sampling({"temperature": 0.7, "do_sample": False}, 0).temperature == 0
    with pytest.raises(ValueError, match="no beam search"):
        parse_sampling({"num_beams": 4}, 0)
    with pytest.raises(ValueError, match="max_new_tokens"):
        parse_sampling({"max_new_tokens": -1}, 0)


def test_no_setting_of_a_method_is_an_argument_of_the_model(make):
    arguments = set(type(make()).__init__.__annotations__) - {"settings", "return"}
    for kind in METHODS.values():
        assert not arguments & {field.name for field in dataclasses.fields(kind)}


VIDEO = {"type": "video", "url": "clip.mp4"}
WHY = {"type": "text", "text": "Why?"}


def turn(*content: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": list(content)}


def test_parts_of_messages():
    system = turn({"type": "text", "text": "Be brief."}, role="system")
    assert parse_messages([system, turn(VIDEO, WHY)], "else") == (
        "Be brief.",
        [MediaPart("clip.mp4"), "Why?"],
    )
    assert parse_messages([turn(WHY, VIDEO, WHY)], "else")[0] == "else"
    (shown, _) = parse_messages([turn(VIDEO | {"start_time": 3, "end_time": None}, WHY)], "")[1]
    assert shown == MediaPart("clip.mp4", 3.0, None)
    assert parse_messages([turn({"url": "clip.mp4"}, WHY)], "")[1][0] == MediaPart("clip.mp4")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([turn({"type": "image", "url": "a.png"}, WHY)], "reads videos and audio"),
        ([turn(VIDEO, WHY), turn(WHY, role="assistant"), turn(WHY)], "--num_fewshot 0"),
        ([turn(WHY, VIDEO)], "no question"),
        ([], "no question"),
        ([turn({"type": "video", "url": [1, 2]}, WHY)], "a video as list"),
        ([turn({"type": "audio", "url": {"bytes": b""}}, WHY)], "an audio as dict|a audio as dict"),
        ([turn(VIDEO, role="system"), turn(WHY)], "system prompt must be text"),
    ],
)
def test_messages_that_are_refused(messages, message):
    with pytest.raises(ValueError, match=message):
        parse_messages(messages, "")


def test_images_are_refused(make):
    model = make([{"media": [{"type": "image", "url": "a.png"}], "question": "Why?"}])
    with pytest.raises(ValueError, match="leave such tasks out"):
        list(model.generate_until([Request(0, messages_of, GREEDY)]))


class Function(str):
    """The argument of !function in a task's file."""


class Loader(yaml.SafeLoader):
    pass


Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))


def task(path: Path) -> dict[str, Any]:
    """A task merged with the files that it includes, as lmms-eval reads it."""
    fields = yaml.load(path.read_text(), Loader)
    included = fields.pop("include", None)
    return (task(path.parent / included) if included else {}) | fields


class Rows(list):
    """The used part of ``datasets.Dataset``."""

    from_list = classmethod(lambda cls, rows: cls(rows))


NAMES = sorted(path.stem for path in TASKS.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_tasks(name, tmp_path, monkeypatch):
    fields = task(TASKS / f"{name}.yaml")
    assert fields["task"] == fields["dataset_kwargs"]["field"] == name
    for value in fields.values():
        if isinstance(value, Function):
            module, _, attribute = value.rpartition(".")
            assert callable(getattr(importlib.import_module(module), attribute))
    (row,) = json.loads((TASKS / fields["dataset_kwargs"]["data_files"]["test"]).read_text())[name]
    protocol = PROTOCOLS[row["protocol"]]
    assert (row["protocol"] == "authors") == name.endswith("_authors")
    assert fields["generation_kwargs"]["max_new_tokens"] == protocol.max_new_tokens
    lines = [
        {"id": 1, "video": "a.mp4", "question": "Who?", "options": ["a cat", "a man"]}
        | {"answer": "B", "end": 4},
        {"id": 2, "video": "b.mp4", "question": "What?", "answer": "red"},
    ]
    monkeypatch.setenv("OMNIZIP_QUESTIONS", str(tmp_path))
    (tmp_path / row["file"]).write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = task_questions.questions(Rows([row]))
    assert first.keys() == second.keys()
    *system, user = task_questions.messages(first)
    texts = [message["content"][0]["text"] for message in system]
    assert texts == ([] if protocol.system is None else [protocol.system])
    assert parse_messages([*system, user], None) == (
        protocol.system,
        [MediaPart(str(tmp_path / "a.mp4"), 0.0, 4.0), task_questions.text(first)],
    )
    assert "B. a man" in task_questions.text(first) and task_questions.text(second) == "What?"
    assert task_questions.visual(first)[0]["video_end"] == 4 and task_questions.visual(second) == [
        str(tmp_path / "b.mp4")
    ]
    right = [
        task_questions.score(first, ["B"]),
        task_questions.score(first, ["A"]),
        task_questions.score(first, [""]),
    ]
    assert [each["accuracy"] for each in right] == [1.0, 0.0, 0.0]
    assert task_questions.score(second, ["Red."]) == {"accuracy": 1.0}


def test_task_files_that_are_refused(tmp_path, monkeypatch):
    rows = Rows([{"file": "avut.jsonl", "protocol": "authors"}])
    monkeypatch.delenv("OMNIZIP_QUESTIONS", raising=False)
    with pytest.raises(ValueError, match="OMNIZIP_QUESTIONS to the folder with avut"):
        task_questions.questions(rows)
    monkeypatch.setenv("OMNIZIP_QUESTIONS", str(tmp_path))
    with pytest.raises(ValueError, match=r"avut.jsonl: there is no such file"):
        task_questions.questions(rows)
    (tmp_path / "avut.jsonl").write_text('{"id": 1, "video": "a.mp4", "question": "What?"}\n')
    with pytest.raises(ValueError, match=r"cannot be scored: \['1'\]"):
        task_questions.questions(rows)


def test_nothing_else_needs_lmms_eval_or_torch():
    found = imports(PACKAGE)
    plugin = "evaluation.lmms"
    theirs = {each.file for each in found if each.target.startswith("lmms_eval")}
    assert theirs == {f"{plugin}.model", f"{plugin}.manifest"}
    assert not [each for each in found if each.ours and each.target in theirs]
    assert not [
        str(each)
        for each in found
        if each.ours and each.target.startswith(plugin) and not each.file.startswith(plugin)
    ]
