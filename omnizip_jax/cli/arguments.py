"""Options of every command: parsing, and the checks that need no slow import."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import math
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from omnizip_jax.evaluation.dataset_readers import BENCHMARKS, parse_timestamp

COMMANDS = Path(__file__).with_name("commands.toml")  # every command and option
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")  # formats that matplotlib writes
SERVE_PACKAGES = ("starlette", "uvicorn", "websockets", "prometheus_client", "pebble", "cachetools")
END_OF_STREAM = math.inf  # the time of a question that waits for the end of the stream

QUESTIONS = (  # (command, option, its name in the namespace)
    ("generate", "QUESTION", "question"),
    ("compare", "QUESTION", "question"),
    ("picture", "--question", "question"),
    ("caption", "--prompt", "prompt"),
)

Number = TypeVar("Number", int, float)


def _utf8(argument: str) -> str:
    """Text that is UTF-8; Python passes other bytes on as surrogates."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"must be UTF-8, got {argument!r}") from None
    return argument


def _number(
    kind: Callable[[str], Number], valid: Callable[[Number], bool], expected: str
) -> Callable[[str], Number]:
    """The conversion of an argument to a number that is valid."""

    def convert(argument: str) -> Number:
        with contextlib.suppress(ValueError, OverflowError):
            number = kind(argument)
            if valid(number):
                return number
        raise argparse.ArgumentTypeError(f"must be {expected}, got {argument!r}")

    return convert


# By the name of a type in the file: the conversion, and the placeholder of its value in the help.
TYPES: dict[str, tuple[Callable[[str], Any], str | None]] = {
    "text": (_utf8, "TEXT"),
    "count": (_number(int, lambda x: x >= 1, "a whole number from 1"), "N"),
    # jax uses 32 bits of a seed.
    "index": (_number(int, lambda x: 0 <= x < 2**32, "a whole number from 0 to 2^32 - 1"), "N"),
    "number": (_number(float, math.isfinite, "a number"), None),
    "float": (float, None),
    "file": (Path, "FILE"),
    "folder": (Path, "DIR"),
}


class Parser(argparse.ArgumentParser):
    """A parser whose messages say what to do about file names that begin with a dash."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = list(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        for word in itertools.takewhile(lambda word: word != "--", self._words):
            file = re.fullmatch(r"-(?![\d.]+$)[^=]*\.\w+", word) or Path(word).exists()
            if word.startswith("-") and file:
                message += (
                    f"; {word!r} begins with a dash and is read as an option: write './{word}', or "
                    "put '--' before it, after all options"
                )
        super().error(message)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default to the help of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        no_default = isinstance(action.default, bool) or action.default in (None, [])
        return action.help if no_default else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line.

    The namespace that it returns names the command (``command``) and the module of this folder
    that runs it (``module``).
    """
    parser = Parser(
        prog="omnizip",
        description="Answer questions about videos with sound from 35-45 % of their audio and "
        "video tokens (Qwen2.5-Omni, Qwen3-Omni).",
        epilog="Start with `omnizip demo`: it needs no downloaded weights and no video.",
    )
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )

    specification = tomllib.loads(COMMANDS.read_text(encoding="utf-8"))
    options = specification["options"]
    options["BENCHMARK"] = {"choices": list(BENCHMARKS), "help": ", ".join(BENCHMARKS)}
    for name, command in specification["commands"].items():
        text, defaults = command["help"], command.get("defaults", {})
        settings = {"description": command.get("description", text)}
        added = commands.add_parser(name, help=text, formatter_class=HelpFormatter, **settings)
        added.set_defaults(module=command["module"])
        for option in command.get("options", "").split():
            _add_option(added, option, options[option], defaults)
    return parser


def _add_option(
    command: argparse.ArgumentParser, name: str, option: dict[str, Any], defaults: dict[str, Any]
) -> None:
    """Add an option to a command; one with a default of the command is not required."""
    settings = dict(option)
    flags = settings.pop("flags", "--" + name.replace("_", "-")).split()
    if "type" in settings:
        settings["type"], metavar = TYPES[settings["type"]]
        settings.setdefault("metavar", metavar)
    if isinstance(settings.get("metavar"), list):
        settings["metavar"] = tuple(settings["metavar"])  # argparse takes no list
    if name in defaults:
        settings |= {"default": defaults[name], "required": False}
    if name.isupper():
        flags, settings["metavar"] = [name.lower()], name
    else:
        settings["dest"] = name
    command.add_argument(*flags, **settings)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check what argparse cannot, create output folders, and parse the times of ``--ask``.

    Raises:
        ValueError: options that contradict each other, an empty question, a bad time, a package
            that is not installed, or an output that cannot be written.
    """
    values = vars(arguments)
    if values.get("no_audio") and values.get("no_video"):
        raise ValueError("--no-audio and --no-video leave nothing: drop one of them")
    if values.get("no_audio") and values.get("sound") is not None:
        raise ValueError("--sound names a source and --no-audio leaves it out: drop one of them")
    for command, option, name in QUESTIONS:
        if arguments.command == command:
            _check_question(option, values[name])
    if arguments.command == "stream":
        arguments.ask = [(parse_time(time), question) for time, question in arguments.ask]
        for _, question in arguments.ask:
            _check_question("--ask", question)
    elif arguments.command == "serve":
        missing = [name for name in SERVE_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(
                f"serving needs {', '.join(missing)}: pip install 'omnizip_jax[serve]' brings them"
            )
        if arguments.no_api_key and arguments.api_key_file is not None:
            raise ValueError("--api-key-file and --no-api-key contradict each other: drop one")
    if values.get("workers") is not None and arguments.cluster is None:
        raise ValueError("--workers goes with --cluster")
    if values.get("cluster") is not None and importlib.util.find_spec("ray") is None:
        raise ValueError("--cluster needs Ray: pip install 'omnizip_jax[cluster]' brings it")
    if values.get("picture") is not None:
        check_picture("--picture", arguments.picture)
    for option, name in (("--out", "folder"), ("--save-sessions", "save_sessions")):
        if values.get(name) is not None:
            make_folder(option, values[name])


def make_folder(option: str, folder: Path) -> None:
    """Create a folder unless it exists, and check that files can be written to it.

    Args:
        option: named in the message.

    Raises:
        ValueError: the path is a file, or the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "not a folder" if folder.exists() else error.strerror
        raise ValueError(f"{option} {folder}: cannot be made: {reason}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {folder}: cannot be written to")


def check_picture(option: str, path: Path) -> None:
    """Check that a picture can be written to a path; an existing file is not changed.

    Raises:
        ValueError: an unknown format, a folder, or a place that cannot be written to.
    """
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(
            f"{option} {path}: give a file whose name ends in {', '.join(PICTURE_SUFFIXES)}"
        )
    new = not path.exists()
    try:
        path.open("ab").close()
        if new:
            path.unlink()
    except OSError as error:
        raise ValueError(f"{option} {path}: cannot be written: {error.strerror}") from error


def parse_time(text: str) -> float:
    """Seconds of "30", "00:30", "1:02:03"; ``END_OF_STREAM`` for "end".

    Raises:
        ValueError: anything else.
    """
    if text.strip().lower() == "end":
        return END_OF_STREAM
    if not re.fullmatch(r"\d+(?::[0-5]?\d){0,2}(?:\.\d*)?", text.strip(), re.ASCII):
        raise ValueError(f'--ask {text!r}: not a time; write MM:SS, H:MM:SS, seconds, or "end"')
    return parse_timestamp(text)


def _check_question(option: str, question: str) -> None:
    if not question.strip():
        raise ValueError(f"{option}: the question must be a text, got {question!r}")
