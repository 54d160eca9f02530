"""Data sets as they lie on disk, turned into questions.

A reader knows how one benchmark writes its questions, and by what its tables are divided: beside
what a question needs, all of them give ``benchmark`` and ``category``.
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
    """How a benchmark lies on disk.

    Attributes:
        name: as the command line and the tables have it.
        read: what its annotation file holds, to questions; videos as the file names them.
        frames: the most frames of a clip in the paper (section 4.1).
        grouped: its score is the mean over groups of the mean over categories, not over questions.
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
        videos: the folder below which its videos lie; that of the annotations by default.

    Raises:
        ValueError: an unknown benchmark, or a file that is not of its form.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"{name}: no benchmark that is known; take one of {', '.join(BENCHMARKS)}")
    path = _annotation_file(Path(annotations))
    folder = path.parent if videos is None else Path(videos)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no folder of videos")
    find = Videos(folder)
    out = []
    try:
        for columns in BENCHMARKS[name].read(_parsed(path)):
            clean = {key: value for key, value in columns.items() if value is not None}
            out.append(clean | {"video": find(columns["video"]), "benchmark": name})
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path}: not the annotations of {name}: question {len(out) + 1} has no {error}"
            if isinstance(error, KeyError)
            else f"{path}: not the annotations of {name}: {error}"
        ) from error
    if not out:
        raise ValueError(f"{path}: no question in it")
    return out


class Videos:
    """Finds videos below a folder by the names that annotations give them.

    Attributes:
        missing: those that were not found; their questions name where they should be.
    """

    def __init__(self, folder: Path):
        self.folder, self.missing = folder.resolve(), 0
        self._paths: dict[str, list[Path]] = {}
        for path in sorted(self.folder.rglob("*")):
            if path.suffix in SUFFIXES:
                self._paths.setdefault(path.name, []).append(path)

    def __call__(self, name: str) -> str:
        """The path of a video: the one whose last parts agree the most."""
        parts = Path(name).parts
        names = [parts[-1]] if Path(name).suffix in SUFFIXES else [parts[-1] + s for s in SUFFIXES]
        found = [path for each in names for path in self._paths.get(each, ())]
        if not found:
            self.missing += 1
            return str(self.folder / names[0])
        return str(max(found, key=lambda path: _agreement(path.parts[:-1], parts[:-1])))


def _agreement(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many parts at the end are the same."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def _annotation_file(path: Path) -> Path:
    if path.is_dir():
        found = sorted([*path.glob("*.json"), *path.glob("*.jsonl")])
        if len(found) != 1:
            raise ValueError(
                f"{path}: name the file with the questions; there are {len(found)} JSON files"
            )
        return found[0]
    return path


def _parsed(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error


def _worldsense(annotations: dict[str, Columns]) -> Iterator[Columns]:
    """{video: {video_id, domain, ..., task0: {question, candidates, answer, ...}, task1: ...}}."""
    for key, video in annotations.items():
        name = video.get("video_id", key)
        for task in (task for task in video if task.startswith("task")):
            question = video[task]
            yield {
                "id": f"{name}/{task}",
                "video": f"{name}.mp4",
                "question": question["question"],
                "options": question["candidates"],
                "answer": question["answer"],
                "category": video["domain"],
                "task_type": question.get("task_type"),
                "task_domain": question.get("task_domain"),
                "audio_class": video.get("audio_class"),
                "duration": video.get("duration"),
            }


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
        yield {
            "id": str(number),
            "video": each["video"],
            "question": each["question"],
            "options": each["candidates"],
            "answer": each["answer"],
            "category": each["problem_type"],
            "data_type": each.get("data_type"),
        }


def _videomme(annotations: list[Columns]) -> Iterator[Columns]:
    """[{videoID, question_id, duration, domain, sub_category, task_type, question, options}]."""
    for number, each in enumerate(annotations):
        yield {
            "id": str(each.get("question_id", number)),
            "video": f"{each['videoID']}.mp4",
            "question": each["question"],
            "options": list(each["options"]),
            "answer": each["answer"],
            "category": each["duration"],
            "domain": each.get("domain"),
            "sub_category": each.get("sub_category"),
            "task_type": each.get("task_type"),
        }


def _dailyomni(annotations: list[Columns]) -> Iterator[Columns]:
    """[{Question, Choice, Answer, video_id, Type, video_category, video_duration}]."""
    for number, each in enumerate(annotations):
        name = each["video_id"]
        yield {
            "id": str(number),
            "video": f"{name}/{name}_video.mp4",
            "question": each["Question"],
            "options": each["Choice"],
            "answer": each["Answer"],
            "category": each["Type"],
            "video_category": each.get("video_category"),
            "video_duration": each.get("video_duration"),
        }


def _streamingbench(annotations: list[Columns]) -> Iterator[Columns]:
    """[{time, video_path, questions: [{task_type, question, time_stamp, options, answer}]}].

    What the viewer has seen is the video up to the time stamp.
    """
    for number, video in enumerate(annotations):
        for place, each in enumerate(video["questions"]):
            yield {
                "id": f"{number}/{place}",
                "video": video["video_path"],
                "question": each["question"],
                "options": each["options"],
                "answer": each["answer"],
                "end": parse_clock(each["time_stamp"]),
                "category": each["task_type"],
            }


def _ovobench(annotations: list[Columns]) -> Iterator[Columns]:
    """[{id, task, video, realtime, question, options, gt}], and ``test_info`` in forward tasks.

    The words of the forward tasks (counting so far, a step under way, enough seen to answer) are
    ours; their answers are a number, Yes or No.
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
                words = (
                    f"How many times did they {each['activity']} up to now? Answer with a number."
                )
                answer = str(probe["count"])
            elif task == "SSR":
                words = f"Is this step being done at the end of the video: {probe['step']}"
            else:
                words = f"Has enough been shown to answer this question: {each['question']}"
            if task != "REC":
                words, answer = f"{words}\nAnswer with Yes or No.", ("No", "Yes")[probe["type"]]
            yield common | {
                "id": f"{each['id']}/{place}",
                "question": words,
                "answer": answer,
                "end": probe["realtime"],
            }


def parse_clock(text: str) -> float:
    """Seconds of 1:02:03 or 02:03.

    Raises:
        ValueError: it is no such time.
    """
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
