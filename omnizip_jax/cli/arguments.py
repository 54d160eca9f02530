"""Options of every command: parsing, and the checks that need no slow import."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from omnizip_jax.evaluation.dataset_readers import BENCHMARKS

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")  # formats that matplotlib writes
SERVE_PACKAGES = (
    "starlette",
    "uvicorn",
    "websockets",
    "prometheus_client",
    "pebble",
    "cachetools",
)
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


def _positive(argument: str) -> int:
    return _number(argument, int, lambda x: x >= 1, "a whole number from 1")


def _seed(argument: str) -> int:
    """A seed; jax drops all but 32 bits."""
    return _number(argument, int, lambda x: 0 <= x < 2**32, "a whole number from 0 to 2^32 - 1")


def _finite(argument: str) -> float:
    return _number(argument, float, math.isfinite, "a number")


def _number(
    argument: str, kind: Callable[[str], Number], valid: Callable[[Number], bool], expected: str
) -> Number:
    try:
        number = kind(argument)
        if valid(number):
            return number
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"must be {expected}, got {argument!r}")


FLAG: dict[str, Any] = {"action": "store_true"}
COUNT: dict[str, Any] = {"type": _positive, "metavar": "N"}
SEED: dict[str, Any] = {"type": _seed, "metavar": "N"}
TEXT: dict[str, Any] = {"type": _utf8, "metavar": "TEXT"}
NAME: dict[str, Any] = {"metavar": "NAME"}
FILE: dict[str, Any] = {"type": Path, "metavar": "FILE"}
FOLDER: dict[str, Any] = {"type": Path, "metavar": "DIR"}
SETTING: dict[str, Any] = {"action": "append", "default": [], "metavar": "KEY=VALUE"}
VIDEO_LISTS = "videos, folders of videos, URLs, or text files (.txt) with a path or URL a line"
CHECKPOINT = 'folder written by `omnizip convert`, or "small": the small model of this package'
ATTENTION = "the question whose attention is drawn; methods inside the decoder select by it"
SKIPPING = "let the source wait, or skip windows (default: skip for devices and --realtime)"
TIMES = 'ask at that time of the stream: 00:30, 1:02:03, or "end"; may be repeated'
RIVALS = (
    "several methods instead, the first is the reference: all omnizip:keep=0.35 random:keep=0.35"
)
EVICTION = "a full cache evicts the oldest tokens, or tokens of all windows, more of the older ones"
CLUSTER = "an engine on every device of this Ray cluster (without ADDRESS: of this machine)"
ENGINES = "engines (default: one per GPU, or one per machine without GPUs)"
SESSIONS = "store live sessions when a client disconnects or SIGTERM arrives, to resume them"
STREAM_DEMO = (
    "stream one minute through a small cache instead, and ask three times about its beginning"
)


def _option(text: str, flags: str = "", **settings: Any) -> tuple[str, dict[str, Any]]:
    """Help, and the keyword arguments of ``add_argument``.

    Args:
        flags: if they are not the option's name in ``OPTIONS`` with dashes.
    """
    return flags, {"help": text, **settings}


# By the name in the namespace; positional arguments in capitals.
OPTIONS = {
    # Input
    "CLIP": _option("video file or URL"),
    "QUESTION": _option("the question", type=_utf8),
    "SOURCE": _option("file, URL, or device:FORMAT:NAME (device:v4l2:/dev/video0)"),
    "VIDEOS": _option(VIDEO_LISTS, nargs="+"),
    "question": _option(ATTENTION, default="What happens in the video?", **TEXT),
    "prompt": _option("the prompt about each video", required=True, **TEXT),
    "sound": _option("take the audio from this source instead", metavar="SOURCE"),
    "no_audio": _option("ignore the audio", **FLAG),
    "no_video": _option("ignore the video", **FLAG),
    "max_frames": _option("sample at most N frames of a long clip", **COUNT),
    "realtime": _option("read a file no faster than real time", **FLAG),
    "when_slow": _option(SKIPPING, choices=["wait", "skip"]),
    "timeout": _option("seconds to wait for data", type=float, default=10.0, metavar="S"),
    "ask": _option(
        TIMES, nargs=2, type=_utf8, action="append", default=[], metavar=("TIME", "QUESTION")
    ),
    # Model and compression
    "checkpoint": _option(CHECKPOINT, required=True, metavar="DIR"),
    "dtype": _option("compute in another dtype", choices=["bfloat16", "float32"]),
    "grid_slots": _option("video tokens a second, at most (default: the checkpoint's)", **COUNT),
    "NAME": _option("show this method's settings", nargs="?"),
    "method": _option("compression; `omnizip methods` lists them", default="omnizip", **NAME),
    "methods": _option("separated by commas; `omnizip methods` lists them", "--methods --method"),
    "set": _option("a setting; `omnizip methods NAME` lists them; may be repeated", **SETTING),
    "share": _option("share of media tokens to keep", "--keep", type=_finite, metavar="SHARE"),
    "capacity": _option("cache size in tokens", default=8192, **COUNT),
    "memory": _option(EVICTION, choices=["recent", "fading"], default="fading"),
    # Generation
    "max_new_tokens": _option("longest answer in tokens", **COUNT),
    "system": _option("system prompt (default: the released one)", **TEXT),
    "temperature": _option("of sampling; 0 is greedy", type=_finite, default=0.0, metavar="T"),
    "top_p": _option("nucleus sampling", type=_finite, default=1.0, metavar="P"),
    "seed": _option("of sampling and of random methods", default=0, **SEED),
    "keep": _option("keep questions and answers in the context", **FLAG),
    "picture": _option("draw which tokens were kept: .png, .jpg, .pdf or .svg", **FILE),
    "json": _option("one JSON object a line: window, answer, refused, end", **FLAG),
    # Evaluation
    "BENCHMARK": _option(", ".join(BENCHMARKS), choices=list(BENCHMARKS)),
    "ANNOTATIONS": _option("its JSON file, or the folder that has it", type=Path),
    "videos": _option("folder with its videos (default: that of ANNOTATIONS)", **FOLDER),
    "QUESTIONS": _option("file with one JSON object a line", type=Path),
    "RESULTS": _option("files written by `omnizip evaluate`", type=Path, nargs="+"),
    "compare": _option(RIVALS, nargs="+", metavar="METHOD"),
    "seeds": _option("runs of each random method", default=3, **COUNT),
    "protocol": _option("prompts and scoring: authors or lmms-eval", default="authors", **NAME),
    "windowed": _option("read each clip as a stream: --capacity and --memory", "--stream", **FLAG),
    "one_by_one": _option("decode no clip ahead: slower, but nothing disturbs the times", **FLAG),
    "cluster": _option(CLUSTER, nargs="?", const="local", metavar="ADDRESS"),
    "workers": _option(ENGINES, **COUNT),
    # Server
    "host": _option("address to listen at", default="127.0.0.1"),
    "port": _option("port to listen at", type=_positive, default=8000),
    "api_key_file": _option("clients must send the key in this file", **FILE),
    "no_api_key": _option("let other machines connect without a key", **FLAG),
    "allow_media": _option("requests may name files below this folder", **FOLDER),
    "allow_remote": _option("requests may name public addresses, never private ones", **FLAG),
    "max_sessions": _option("concurrent live sessions", default=16, **COUNT),
    "save_sessions": _option(SESSIONS, **FOLDER),
    "max_upload": _option("size limit of a medium", type=_positive, default=64, metavar="MIB"),
    # Output
    "out": _option("file to write, one JSON object a line", required=True, **FILE),
    "report": _option("write to this Markdown file instead", "--out", **FILE),
    "folder": _option("folder to write to", "--out", **FOLDER),
    "clip_seed": _option("another clip, other questions", "--seed", **SEED),
    "stream": _option(STREAM_DEMO, **FLAG),
}
MEDIA = "no_audio no_video max_frames"
MODEL = "checkpoint dtype"
COMPRESSION = "grid_slots method set"
SEVERAL_METHODS = f"{MODEL} methods share set max_frames grid_slots seed"


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
    parser = argparse.ArgumentParser(
        prog="omnizip",
        description="Answer questions about videos with sound from 35-45 % of their audio and "
        "video tokens (Qwen2.5-Omni).",
        epilog="Start with `omnizip demo`: it needs no downloaded weights and no video.",
    )
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )

    def add(
        name: str, module: str, options: str, text: str, more: str | None = None, **defaults: Any
    ) -> None:
        """Add a command with some of ``OPTIONS``; an option with a default is not required."""
        command = commands.add_parser(
            name, help=text, description=more or text, formatter_class=HelpFormatter
        )
        command.set_defaults(module=module)
        for option in options.split():
            flags, settings = OPTIONS[option]
            if option.isupper():
                command.add_argument(option.lower(), metavar=option, **settings)
                continue
            flags = flags or "--" + option.replace("_", "-")
            if option in defaults:
                settings = settings | {"default": defaults[option], "required": False}
            command.add_argument(*flags.split(), dest=option, **settings)

    add(
        "demo",
        "demo_command",
        "folder clip_seed stream",
        "ask a small trained model about a generated clip",
        "Generates a clip of shapes and sounds, asks the small trained model of this package about "
        "it with all, 45 % and 35 % of the tokens, prints the correct answers beside its own, "
        "and draws which tokens were kept.",
        folder=Path("omnizip-demo"),
    )
    commands.add_parser(
        "convert", help="convert released Qwen2.5-Omni weights to a Flax checkpoint (once)"
    )
    add("methods", "generate_command", "NAME", "list the compression methods")
    add(
        "generate",
        "generate_command",
        f"CLIP QUESTION {MODEL} {COMPRESSION} {MEDIA} max_new_tokens system temperature top_p seed "
        "picture",
        "ask a question about a video file or URL",
        max_new_tokens=256,
    )
    add(
        "compare",
        "compare_command",
        f"CLIP QUESTION {SEVERAL_METHODS} max_new_tokens folder",
        "ask one question under several methods: answers, tokens, cost, times, picture",
        "Answers one question about one clip under each method, twice, so that times exclude "
        "compilation; prints answers, tokens and cost, and draws which tokens each method kept.",
        checkpoint="small",
        methods="all,omnizip,random,fastv",
        max_new_tokens=128,
        folder=Path("omnizip-compare"),
    )
    add(
        "picture",
        "compare_command",
        f"CLIP {SEVERAL_METHODS} question folder",
        "draw which tokens methods keep, and where the decoder attends",
        "Draws the frames of a clip with dropped tokens dimmed, its audio tokens and the rates of "
        "every window (the paper's Fig. 8 and 5), and the attention of a question's last token in "
        "every layer (Fig. 2), for one or several methods.",
        checkpoint="small",
        methods="omnizip",
        folder=Path("omnizip-picture"),
    )
    add(
        "questions",
        "evaluate_command",
        "BENCHMARK ANNOTATIONS videos out",
        "convert a benchmark on disk to a file of questions for `omnizip evaluate`",
    )
    add(
        "evaluate",
        "evaluate_command",
        f"QUESTIONS {MODEL} out {COMPRESSION} compare seeds protocol {MEDIA} max_new_tokens "
        "windowed capacity memory one_by_one cluster workers",
        "ask a file of questions about videos, and report accuracy and cost",
        "Asks every question of a file with one JSON object a line: id, video, question; "
        "optionally options, answer, start, end, and further columns. Rows are appended as they "
        "are computed; the same command resumes an interrupted run. --max-new-tokens is the "
        "protocol's by default.",
    )
    add(
        "report",
        "evaluate_command",
        "RESULTS report",
        "tabulate runs of `omnizip evaluate` side by side, as the paper's tables",
        "Prints Tables 1, 2, 3 and 6 and Figures 4, 6 and 7 of the paper as far as the runs "
        "provide them, with the paper's own values beside them, marked as such.",
    )
    add(
        "caption",
        "evaluate_command",
        f"VIDEOS prompt {MODEL} out {COMPRESSION} {MEDIA} max_new_tokens cluster workers",
        "one prompt about a folder or list of videos",
        "Sends one prompt about every video and appends a row for each: video, reply, tokens, "
        "error. The same command resumes an interrupted run.",
        max_new_tokens=256,
    )
    add(
        "serve",
        "serve_command",
        f"{MODEL} host port api_key_file no_api_key allow_media allow_remote max_sessions "
        f"save_sessions max_upload capacity {COMPRESSION}",
        "serve a camera page, OpenAI-compatible chat, and live video over a WebSocket",
        "Serves a page at /, POST /v1/chat/completions and WS /v1/video/chat/stream on this "
        "machine; docs/serving.md describes the protocols.",
        checkpoint="small",
    )
    add(
        "stream",
        "stream_command",
        f"SOURCE {MODEL} ask keep max_new_tokens {COMPRESSION} capacity memory "
        "sound no_audio no_video realtime when_slow timeout system json",
        "read a file, URL or camera continuously, and ask meanwhile",
        "Reads 2 s windows as they arrive and answers questions, typed (or piped in) or given with "
        "--ask. Each is answered when the window in which it was asked is complete. Memory is "
        "constant; the time per window grows until the cache is full. Ctrl-C ends it.",
        max_new_tokens=128,
    )
    return parser


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
        with open(path, "ab"):
            pass
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
    parts = text.strip().split(":")
    try:
        units = [int(part) for part in parts[:-1]] + [float(parts[-1])]
    except ValueError:
        units = [math.nan]
    # After the first, minutes and seconds stay below 60; nan fails every comparison.
    if len(units) > 3 or not all(0 <= u < (60 if i else math.inf) for i, u in enumerate(units)):
        raise ValueError(f'--ask {text!r}: not a time; write MM:SS, H:MM:SS, seconds, or "end"')
    return sum(unit * 60**power for power, unit in enumerate(reversed(units)))


def _check_question(option: str, question: str) -> None:
    if not question.strip():
        raise ValueError(f"{option}: the question must be a text, got {question!r}")
