"""Readers of published benchmarks: annotation files on disk to questions.

Beside what a question needs, each reader sets ``benchmark`` and ``category``, by which tables are
divided.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omnizip_jax.evaluation.question_file import LETTERS

Columns = dict[str, Any]
SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".MP4")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The reader of a benchmark.

    Attributes:
        name: on the command line and in tables.
        read: from parsed annotations to questions, with videos as the annotations name them.
        frames: limit of the frames of a clip in the paper (section 4.1).
        grouped: the score is the mean over groups of the mean over categories, not over questions.
    """

    name: str
    read: Callable[[Any], Iterator[Columns]]
    frames: int = 128
    grouped: bool = False


def read_benchmark(
    name: str, annotations: str | os.PathLike[str], videos: str | os.PathLike[str] | None = None
) -> list[Columns]:
    """The questions of a benchmark, ready for ``write_questions``.

    Args:
        name: in ``BENCHMARKS``.
        annotations: its JSON file (a list, an object, or one object a line), or the folder in which
            it is the only one.
        videos: the folder that is searched for videos; by default that of the annotations.

    Raises:
        ValueError: an unknown benchmark, or a file of another form.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"{name}: unknown benchmark; take one of {', '.join(BENCHMARKS)}")
    path = _annotation_file(Path(annotations))
    folder = path.parent if videos is None else Path(videos)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no folder of videos")
    index, out = VideoIndex(folder), []
    try:
        for columns in BENCHMARKS[name].read(_parsed(path)):
            present = {key: value for key, value in columns.items() if value is not None}
            out.append(present | {"video": index.find(columns["video"]), "benchmark": name})
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        missing = isinstance(error, KeyError)
        problem = f"question {len(out) + 1} has no {error}" if missing else str(error)
        raise ValueError(f"{path}: not the annotations of {name}: {problem}") from error
    if not out:
        raise ValueError(f"{path}: no question in it")
    return out


class VideoIndex:
    """The videos below a folder, found by the paths that annotations give them."""

    def __init__(self, folder: Path):
        self._folder = folder.resolve()
        self._paths: dict[str, list[Path]] = {}
        for path in sorted(self._folder.rglob("*")):
            if path.suffix in SUFFIXES:
                self._paths.setdefault(path.name, []).append(path)

    def find(self, name: str) -> str:
        """The video whose path has the longest end in common; where it should be if missing."""
        parts = Path(name).parts
        names = [parts[-1]] if Path(name).suffix in SUFFIXES else [parts[-1] + s for s in SUFFIXES]
        found = [path for each in names for path in self._paths.get(each, ())]
        if not found:
            return str(self._folder / names[0])
        return str(max(found, key=lambda path: _common_end(path.parts[:-1], parts[:-1])))


def _common_end(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """The number of equal parts at the end."""
    pairs = list(zip(reversed(one), reversed(other), strict=False))
    return next((count for count, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _annotation_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted([*path.glob("*.json"), *path.glob("*.jsonl")])
    if len(found) != 1:
        raise ValueError(
            f"{path}: name the file with the questions; there are {len(found)} JSON files"
        )
    return found[0]


def _parsed(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def _copied(
    annotation: Columns,
    *optional: str,
    category: str,
    question: str = "question",
    options: str = "options",
    answer: str = "answer",
) -> Columns:
    """Columns of a question that have other names in the annotation, and optional columns."""
    names = {"question": question, "options": options, "answer": answer, "category": category}
    required = {column: annotation[name] for column, name in names.items()}
    return required | {name: annotation.get(name) for name in optional}


def _worldsense(annotations: dict[str, Columns]) -> Iterator[Columns]:
    """{video: {video_id, domain, ..., task0: {question, candidates, answer, ...}, task1: ...}}."""
    optional = ("task_type", "task_domain", "audio_class", "duration")
    for key, video in annotations.items():
        name = video.get("video_id", key)
        for task in (task for task in video if task.startswith("task")):
            each = video | video[task]
            copied = _copied(each, *optional, options="candidates", category="domain")
            yield {"id": f"{name}/{task}", "video": f"{name}.mp4", **copied}


def _avut(annotations: list[Columns]) -> Iterator[Columns]:
    """[{video_path, question, option_A, ..., answer, task_type, video_id, QA_id}]."""
    for number, each in enumerate(annotations):
        options = [each.get(f"option_{letter}") for letter in LETTERS[:6]]
        yield {
            "id": str(number),
            "video": each["video_path"],
            "question": each["question"],
            "options": [f"{x}. {o}" for x, o in zip(LETTERS, options, strict=False) if o],
            "answer": each["answer"].strip().upper(),
            "category": AVUT_TASKS.get(each["task_type"], each["task_type"]),
            "video_id": each.get("video_id"),
            "QA_id": each.get("QA_id"),
        }


def _shortvid(annotations: list[Columns]) -> Iterator[Columns]:
    """[{video, question, candidates, answer, problem_type, data_type}]."""
    for number, each in enumerate(annotations):
        copied = _copied(each, "data_type", options="candidates", category="problem_type")
        yield {"id": str(number), "video": each["video"], **copied}


def _videomme(annotations: list[Columns]) -> Iterator[Columns]:
    """[{videoID, question_id, duration, domain, sub_category, task_type, question, options}]."""
    for number, each in enumerate(annotations):
        name = str(each.get("question_id", number))
        copied = _copied(each, "domain", "sub_category", "task_type", category="duration")
        yield {"id": name, "video": f"{each['videoID']}.mp4", **copied}


def _dailyomni(annotations: list[Columns]) -> Iterator[Columns]:
    """[{Question, Choice, Answer, video_id, Type, video_category, video_duration}]."""
    names = {"question": "Question", "options": "Choice", "answer": "Answer", "category": "Type"}
    for number, each in enumerate(annotations):
        video = "{0}/{0}_video.mp4".format(each["video_id"])
        copied = _copied(each, "video_category", "video_duration", **names)
        yield {"id": str(number), "video": video, **copied}


def _streamingbench(annotations: list[Columns]) -> Iterator[Columns]:
    """[{time, video_path, questions: [{task_type, question, time_stamp, options, answer}]}].

    The clip ends at the time stamp.
    """
    for number, video in enumerate(annotations):
        for place, each in enumerate(video["questions"]):
            yield {
                "id": f"{number}/{place}",
                "video": video["video_path"],
                "end": parse_timestamp(each["time_stamp"]),
                **_copied(each, category="task_type"),
            }


def _ovobench(annotations: list[Columns]) -> Iterator[Columns]:
    """[{id, task, video, realtime, question, options, gt}], and ``test_info`` in forward tasks.

    The prompts of the forward tasks (REC: count so far; SSR: current step; CRR: enough evidence)
    are written by us; their answers are a number, Yes or No.
    """
    for each in annotations:
        task = each["task"]
        common = {
            "video": each["video"],
            "category": task,
            "group": next((g for g, tasks in OVO_GROUPS.items() if task in tasks), "other"),
        }
        if "test_info" not in each:
            yield common | {
                "id": str(each["id"]),
                "question": each["question"],
                "options": each["options"],
                "answer": LETTERS[each["gt"]],
                "end": each["realtime"],
            }
            continue
        for place, probe in enumerate(each["test_info"]):
            if task == "REC":
                text = f"How many times did they {each['activity']} up to now?"
            elif task == "SSR":
                text = f"Is this step being done at the end of the video: {probe['step']}"
            else:
                text = f"Has enough been shown to answer this question: {each['question']}"
            counts = task == "REC"
            form = " Answer with a number." if counts else "\nAnswer with Yes or No."
            yield common | {
                "id": f"{each['id']}/{place}",
                "question": text + form,
                "answer": str(probe["count"]) if counts else ("No", "Yes")[probe["type"]],
                "end": probe["realtime"],
            }


def parse_timestamp(text: str) -> float:
    """Seconds of 1:02:03 or 02:03; ``ValueError`` for any other form."""
    seconds = 0.0
    try:
        for part in str(text).split(":"):
            seconds = 60 * seconds + float(part)
    except ValueError as error:
        raise ValueError(f"expected a time like 0:01:30, got {text!r}") from error
    return seconds


# The paper's short names for the tasks of AVUT (section 4.1).
AVUT_TASKS = {
    "Event Localization": "EL",
    "Object Matching": "OM",
    "OCR Matching": "OR",
    "Information Extraction": "IE",
    "Content Counting": "CC",
    "Character Matching": "CM",
}

OVO_GROUPS = {
    "backward": ("EPM", "ASI", "HLD"),
    "realtime": ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"),
    "forward": ("REC", "SSR", "CRR"),
}

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("worldsense", _worldsense),
        Benchmark("avut", _avut),
        Benchmark("shortvid", _shortvid),
        Benchmark("videomme", _videomme, frames=768),
        Benchmark("dailyomni", _dailyomni),
        Benchmark("streamingbench", _streamingbench),
        Benchmark("ovobench", _ovobench, grouped=True),
    )
}
