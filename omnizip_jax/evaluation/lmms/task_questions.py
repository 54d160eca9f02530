"""Functions of the tasks in ``tasks/``: files of ``omnizip questions`` under a protocol.

The data set of a task is an entry of ``tasks/tasks.json``: the file of questions and the protocol.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnizip_jax.evaluation.protocols import PROTOCOLS
from omnizip_jax.evaluation.question_file import Question, read_questions

FOLDER = "OMNIZIP_QUESTIONS"  # environment variable: the folder of the files of questions

Doc = Mapping[str, Any]


def questions(task: Any) -> Any:
    """The data set of a task.

    Args:
        task: a ``datasets.Dataset`` of one row with file and protocol; the result is one of
            questions.

    Raises:
        ValueError: the environment variable is not set, or the file is missing or invalid.
    """
    row = task[0]
    folder = os.environ.get(FOLDER)
    if not folder:
        raise ValueError(
            f"set the environment variable {FOLDER} to the folder with {row['file']}, which "
            f"`omnizip questions BENCHMARK ANNOTATIONS --out {row['file']}` writes"
        )
    path = Path(folder).expanduser() / row["file"]
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; see `omnizip questions --help`")
    found = read_questions(path)
    unknown = [question.id for question in found if question.answer is None]
    if unknown:
        raise ValueError(f"{path}: questions without an answer cannot be scored: {unknown[:10]}")
    return type(task).from_list([_doc(question, row["protocol"]) for question in found])


def text(doc: Doc) -> str:
    """The text of the user's turn."""
    return PROTOCOLS[doc["protocol"]].prompt(_question(doc))


def visual(doc: Doc) -> list[Any]:
    """The clip, for models without a chat interface."""
    if not doc["start"] and doc["end"] is None:
        return [doc["video"]]
    times = {"video_start": doc["start"], "video_end": doc["end"]}
    return [{"type": "video", "url": doc["video"], **times}]


def messages(doc: Doc) -> list[dict[str, Any]]:
    """System prompt, if the protocol has one, clip and question."""
    system = PROTOCOLS[doc["protocol"]].system_of(_question(doc))
    clip = {"url": doc["video"], "start_time": doc["start"] or None, "end_time": doc["end"]}
    content = [{"type": "video", **clip}, {"type": "text", "text": text(doc)}]
    turns = [{"role": "user", "content": content}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return turns


def score(doc: Doc, replies: Sequence[str]) -> dict[str, float]:
    """The accuracy of a reply, 0 or 1."""
    return {"accuracy": float(bool(PROTOCOLS[doc["protocol"]].score(_question(doc), replies[0])))}


def _doc(question: Question, protocol: str) -> dict[str, Any]:
    fields = {name: value for name, value in vars(question).items() if name != "columns"}
    own = {"category": str(question.columns.get("category", "")), "protocol": protocol}
    return fields | own | {"options": list(question.options)}


def _question(doc: Doc) -> Question:
    names = {field.name for field in dataclasses.fields(Question)} - {"columns"}
    fields: dict[str, Any] = {name: doc[name] for name in names}
    fields["options"] = tuple(doc["options"])
    return Question(**fields)
