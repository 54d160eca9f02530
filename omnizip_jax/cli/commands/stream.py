"""``omnizip stream``: watch a source for as long as it runs, and ask meanwhile."""

from __future__ import annotations

import argparse
import contextlib

from omnizip_jax.cli import programs
from omnizip_jax.cli.arguments import check_modalities, check_question, utf8
from omnizip_jax.cli.shared import (
    Help,
    add_checkpoint,
    add_compression,
    add_memory,
    add_modalities,
    add_reply_length,
    add_system,
    method_from,
    spec_from,
)
from omnizip_jax.cli.times import parse_time

ROOM_TO_ASK = 384  # tokens of a question in a stream and of what stands around it


def add(commands: argparse._SubParsersAction) -> None:
    """The command's arguments."""
    stream = commands.add_parser(
        "stream",
        help="watch a file, URL or camera for as long as it runs, and ask meanwhile",
        description="Feeds 2 s windows as they come and answers questions: those that you type "
        "(or pipe in), and those given with --ask. Each is answered when the window in which it "
        "was asked is complete. Memory and time per window stay flat. Ctrl-C ends it.",
        formatter_class=Help,
    )
    stream.add_argument(
        "source",
        metavar="SOURCE",
        help="file, URL, or device:FORMAT:NAME (device:v4l2:/dev/video0)",
    )
    add_checkpoint(stream)
    stream.add_argument(
        "--ask",
        nargs=2,
        type=utf8,
        action="append",
        default=[],
        metavar=("TIME", "QUESTION"),
        help='ask at that time of the stream: 00:30, 1:02:03, or "end"; may be repeated',
    )
    stream.add_argument("--keep", action="store_true", help="remember questions and answers")
    add_reply_length(stream, 128)
    add_compression(stream)
    add_memory(stream)
    stream.add_argument("--sound", metavar="SOURCE", help="take the sound from here instead")
    add_modalities(stream)
    stream.add_argument(
        "--realtime", action="store_true", help="read a file no faster than a camera would"
    )
    stream.add_argument(
        "--when-slow",
        choices=["wait", "skip"],
        help="let the source wait, or skip windows (default: skip for devices and --realtime)",
    )
    stream.add_argument(
        "--timeout", type=float, default=10.0, metavar="S", help="seconds without data to wait"
    )
    add_system(stream)
    stream.add_argument(
        "--json", action="store_true", help="one JSON object a line: window, answer, refused, end"
    )
    stream.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry it out; returns the exit code."""
    check_modalities(arguments)
    asked = [(parse_time(time), question) for time, question in arguments.ask]
    for _, question in asked:
        check_question("--ask", question)

    import omnizip_jax
    from omnizip_jax.cli.follow import Questions, begin_stream, follow
    from omnizip_jax.cli.terminal import Screen, Typing, print_json
    from omnizip_jax.inference.chat_template import DEFAULT_SYSTEM

    method = method_from(arguments)

    programs.enable_compilation_cache()
    questions = Questions(asked)
    with contextlib.ExitStack() as stack:
        screen = None if arguments.json else stack.enter_context(Screen())
        stack.enter_context(Typing(questions.put, screen and screen.typed))
        if screen:
            screen.status("loading the checkpoint")
        params = omnizip_jax.load(arguments.checkpoint, dtype=arguments.dtype)
        spec = spec_from(arguments, params.config.spec)
        source = stack.enter_context(
            omnizip_jax.windows(
                arguments.source,
                spec,
                use_audio=not arguments.no_audio,
                use_video=not arguments.no_video,
                sound=arguments.sound,
                timeout=arguments.timeout,
                realtime=arguments.realtime,
                when_slow=arguments.when_slow,
            )
        )
        if screen:
            screen.status("compiling (kept for the next time)")
        state = begin_stream(
            params,
            method,
            capacity=arguments.capacity,
            memory=arguments.memory,
            text_slots=arguments.max_new_tokens + ROOM_TO_ASK,
            audio=source.has_audio,
            video=source.has_video,
            spec=spec,
            system=DEFAULT_SYSTEM if arguments.system is None else arguments.system,
        )
        follow(
            params,
            state,
            source,
            questions,
            screen or print_json,
            on_text=screen and screen.text,
            keep=arguments.keep,
            max_new_tokens=arguments.max_new_tokens,
        )
    return 0
