"""What the command line is given, checked before any work begins. Imports nothing slow."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")  # what matplotlib writes, by the suffix

Number = TypeVar("Number", int, float)


def utf8(argument: str) -> str:
    """Text that is UTF-8; Python lets other bytes pass as surrogates."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"must be UTF-8, got {argument!r}") from None
    return argument


def positive(argument: str) -> int:
    """A number of things, at least one."""
    return _number(argument, int, lambda x: x >= 1, "a whole number from 1")


def seed(argument: str) -> int:
    """As many as jax tells apart: it drops all but 32 bits."""
    return _number(argument, int, lambda x: 0 <= x < 2**32, "a whole number from 0 to 2^32 - 1")


def finite(argument: str) -> float:
    """A number that is neither infinite nor NaN."""
    return _number(argument, float, math.isfinite, "a number")


def _number(
    argument: str, kind: Callable[[str], Number], good: Callable[[Number], bool], expected: str
) -> Number:
    try:
        number = kind(argument)
        if good(number):
            return number
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"must be {expected}, got {argument!r}")


def check_modalities(arguments: argparse.Namespace) -> None:
    """Raise ``ValueError`` if the switches leave nothing, or contradict each other."""
    if arguments.no_audio and arguments.no_video:
        raise ValueError("--no-audio and --no-video leave nothing: drop one of them")
    if arguments.no_audio and getattr(arguments, "sound", None) is not None:
        raise ValueError("--sound names a source and --no-audio leaves it out: drop one of them")


def check_question(name: str, question: str) -> None:
    """Raise ``ValueError`` for a blank one."""
    if not question.strip():
        raise ValueError(f"{name}: the question must be a text, got {question!r}")


def make_folder(name: str, folder: Path) -> None:
    """Make sure that files can be written to a folder.

    Args:
        name: of the argument, for the message.

    Raises:
        ValueError: it is a file, or cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "not a folder" if folder.exists() else error.strerror
        raise ValueError(f"{name} {folder}: cannot be made: {reason}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{name} {folder}: cannot be written to")


def check_picture(name: str, path: Path) -> None:
    """Make sure that a picture can be written; what is there stays as it is.

    Raises:
        ValueError: an unknown kind of picture, a folder, or a place that cannot be written to.
    """
    if path.suffix.lower() not in PICTURES:
        raise ValueError(f"{name} {path}: give a file whose name ends in {', '.join(PICTURES)}")
    new = not path.exists()
    try:
        with open(path, "ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise ValueError(f"{name} {path}: cannot be written: {error.strerror}") from error
