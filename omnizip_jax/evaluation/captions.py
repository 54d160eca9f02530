"""One prompt about many videos, as questions: captions are the replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from omnizip_jax.evaluation.question_file import SHOWN, Question, is_remote, parse_question

LIST = ".txt"  # how the name of a list ends
VIDEOS = (".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg")
VIDEOS += (".mts", ".ogv", ".ts", ".webm", ".wmv")  # what a folder is searched for


def caption_questions(sources: Sequence[str], prompt: str) -> list[Question]:
    """A question about each video; its id is the video's path.

    Args:
        sources: each a video, a URL, a folder that is searched with all below it, or a text file
            ``NAME.txt`` with a path or URL a line, paths counted from where the file lies.
        prompt: what is asked about each.

    Raises:
        ValueError: a source that is not there, a folder without videos, a list that is empty or
            cannot be read, a name that is not UTF-8, videos that are named twice. Whether what
            a list names is there is found when it is its turn.
    """
    first: dict[str, str] = {}
    problems = []
    for video, place in (found for source in sources for found in _videos(source)):
        if video in first:
            problems.append(f"{place}: {video} is named a second time, first by {first[video]}")
        elif not _is_utf8(video):
            problems.append(f"{place}: the name {video!r} is not UTF-8: rename the file")
        first.setdefault(video, place)
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ValueError("\n".join([*problems[:SHOWN], *more]))
    return [
        parse_question({"id": video, "video": video, "question": prompt}, Path()) for video in first
    ]


def _videos(source: str) -> Iterator[tuple[str, str]]:
    """The videos of a source, each with the place that names it."""
    path = Path(source).expanduser()
    if is_remote(source):
        yield source, "the command line"
    elif path.is_dir():
        found = sorted(file for file in path.rglob("*") if _is_video(file))
        if not found:
            raise ValueError(f"{source}: no video in this folder ({', '.join(VIDEOS)})")
        yield from ((str(file), source) for file in found)
    elif not path.is_file():
        raise ValueError(f"{source}: no such video, list or folder")
    elif path.suffix.lower() == LIST:
        yield from _listed(path)
    else:
        yield str(path), "the command line"


def _listed(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no list of videos that can be read ({error})") from error
    named = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}
    if not named:
        raise ValueError(f"{path}: names no video: write a path or URL a line")
    for number, line in named.items():
        video = line if is_remote(line) else str(path.parent / Path(line).expanduser())
        yield video, f"{path}, line {number}"


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS and not path.name.startswith(".") and path.is_file()


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # how Python passes other bytes
        return False
    return True
