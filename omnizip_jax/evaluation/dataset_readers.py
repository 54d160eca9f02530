"""Readers of published benchmarks: annotation files on disk to questions.

Beside what a question needs, each reader sets ``benchmark`` and ``category``, by which tables are
divided.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omnizip_jax.evaluation.question_file import LETTERS, as_letter

Columns = dict[str, Any]
Reader = Callable[[Any], Iterator[Columns]]  # from parsed annotations to questions
SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".MP4")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The reader of a benchmark.

    Attributes:
        name: on the command line and in tables.
        read: the videos are named as in the annotations.
        frames: limit of the frames of a clip in the paper (section 4.1).
        grouped: the score is the mean over groups of the mean over categories, not over questions.
    """

    name: str
    read: Reader
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
            if "options" in present:  # benchmarks answer with letters
                present["answer"] = as_letter(present["answer"], present["options"])
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

        def common(path: Path) -> int:
            return sum(path.parts[-n:-1] == parts[-n:-1] for n in range(2, len(parts) + 1))

        return str(max(found, key=common))


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
        video = each["video_path"]
        options = [each.get(f"option_{letter}") for letter in LETTERS[:6]]
        count = max((number for number, option in enumerate(options, 1) if option), default=0)
        own = {
            "options": [f"{x}. {o or '-'}" for x, o in zip(LETTERS, options[:count], strict=False)],
            "answer": each["answer"].strip().upper(),
            "task": AVUT_TASKS.get(each["task_type"], each["task_type"]),
        }
        copied = _copied(each | own, "video_id", "QA_id", category="task")
        yield {"id": str(number), "video": video, **copied}


def _listed(video: str, *optional: str, **names: str) -> Reader:
    """The reader of a list with an object per question; ``video`` is a format with its names."""

    def read(annotations: list[Columns]) -> Iterator[Columns]:
        for number, each in enumerate(annotations):
            name = str(each.get("question_id", number))
            yield {"id": name, "video": video.format_map(each), **_copied(each, *optional, **names)}

    return read


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

    The answers of the forward tasks (``OVO_FORWARD``) are a number, Yes or No.
    """
    for each in annotations:
        task = each["task"]
        group = next((name for name, tasks in OVO_GROUPS.items() if task in tasks), "other")
        common = {"video": each["video"], "category": task, "group": group}
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
            text = OVO_FORWARD.get(task, OVO_FORWARD["CRR"]).format_map(each | probe)
            answer = str(probe["count"]) if task == "REC" else ("No", "Yes")[probe["type"]]
            own = {"id": f"{each['id']}/{place}", "question": text, "answer": answer}
            yield common | own | {"end": probe["realtime"]}


def parse_timestamp(text: str) -> float:
    """Seconds of 1:02:03 or 02:03; ``ValueError`` for any other form."""
    seconds = 0.0
    try:
        for part in str(text).split(":"):
            seconds = 60 * seconds + float(part)
    except ValueError as error:
        raise ValueError(f"expected a time like 0:01:30, got {text!r}") from error
    return seconds


_DATA = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
AVUT_TASKS, OVO_GROUPS, OVO_FORWARD = (_DATA[x] for x in ("avut", "ovo_groups", "ovo_forward"))
DAILYOMNI_OPTIONAL = ("video_category", "video_duration")
DAILYOMNI_VIDEO = "{video_id}/{video_id}_video.mp4"
VIDEOMME_OPTIONAL = ("domain", "sub_category", "task_type")

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("worldsense", _worldsense),
        Benchmark("avut", _avut),
        Benchmark("shortvid", _listed("{video}", "data_type", **_DATA["shortvid"])),
        Benchmark(
            "videomme", _listed("{videoID}.mp4", *VIDEOMME_OPTIONAL, category="duration"), 768
        ),
        Benchmark("dailyomni", _listed(DAILYOMNI_VIDEO, *DAILYOMNI_OPTIONAL, **_DATA["dailyomni"])),
        Benchmark("streamingbench", _streamingbench),
        Benchmark("ovobench", _ovobench, grouped=True),
    )
}
