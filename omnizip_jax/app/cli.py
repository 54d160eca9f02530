"""The ``omnizip`` command."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omnizip_jax.app.arguments import (
    check_modalities,
    check_picture,
    check_question,
    finite,
    make_folder,
    positive,
    seed,
    utf8,
)
from omnizip_jax.app.programs import enable_compilation_cache
from omnizip_jax.app.serve import add_serve
from omnizip_jax.app.times import parse_time
from omnizip_jax.evaluation.readers import BENCHMARKS

if TYPE_CHECKING:  # jax is imported once the arguments are read
    from omnizip_jax.compression import Method
    from omnizip_jax.config import WindowSpec
    from omnizip_jax.media import Clip
    from omnizip_jax.models.params import Params

ROOM_TO_ASK = 384  # tokens of a question in a stream and of what stands around it
STOPPED = 130  # the exit code after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; bad input ends with a message and exit code 1, Ctrl-C with 130.

    Raises:
        SystemExit: ``--help``, and arguments that cannot be parsed (exit code 2).
        OSError: an output does not take what is written; ``app.process`` explains it.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it misses torch; nothing here does
    try:
        if argv[:1] == ["convert"]:  # the script convert/hf_to_flax.py has the same arguments
            from omnizip_jax.checkpoint.convert import main as convert

            code = convert(argv[1:], prog="omnizip convert")
        else:
            arguments = build_parser().parse_args(argv)
            code = arguments.run(arguments)
    except KeyboardInterrupt:
        code = STOPPED
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise
        print(f"omnizip: {error}", file=sys.stderr)
        code = 1
    if code == STOPPED:
        print("omnizip: stopped", file=sys.stderr)
    return code


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says defaults, where there is one to say."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = isinstance(action.default, bool) or action.default in (None, [])
        return action.help if nothing else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    """The command line, as ``--help`` shows it."""
    parser = argparse.ArgumentParser(
        prog="omnizip",
        description="Ask Qwen2.5-Omni about videos with sound, reading 35-45 % of the tokens.",
        epilog="Start with `omnizip demo`: it needs no weights to download and no video.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="see a small trained model answer questions about a clip made on the spot",
        description="Makes a clip with shapes and sounds, asks the small trained model that comes "
        "along what was seen and heard, with all, 45 %% and 35 %% of the tokens, prints true "
        "answers beside its own, and draws what was kept.",
    )
    demo.add_argument(
        "--out", type=Path, default=Path("omnizip-demo"), help="folder to write to (%(default)s)"
    )
    demo.add_argument("--seed", type=seed, default=0, help="another one makes another clip")
    demo.add_argument(
        "--stream",
        action="store_true",
        help="stream the clip window by window instead, asking in the middle and at the end",
    )
    demo.set_defaults(run=_demo)

    commands.add_parser(
        "convert", help="turn released Qwen2.5-Omni weights into a Flax checkpoint, once"
    )

    methods = commands.add_parser("methods", help="list the methods that choose among tokens")
    methods.add_argument(
        "name", nargs="?", metavar="NAME", help="one of them, with its settings and their defaults"
    )
    methods.set_defaults(run=_methods)

    generate = commands.add_parser(
        "generate",
        help="ask a question about a video file or URL",
        description="Answers one question about one video with sound.",
        formatter_class=_Help,
    )
    generate.add_argument("clip", metavar="CLIP", help="video file or URL")
    generate.add_argument(
        "question", type=utf8, metavar="QUESTION", help="what you want to know about it"
    )
    generate.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help='folder that `omnizip convert` wrote, or "small": the small model that comes along',
    )
    add_compression_arguments(generate)
    generate.add_argument("--no-audio", action="store_true", help="leave the sound out")
    generate.add_argument("--no-video", action="store_true", help="leave the picture out")
    generate.add_argument(
        "--max-frames", type=positive, metavar="N", help="sample at most N frames of a long clip"
    )
    generate.add_argument(
        "--max-new-tokens", type=positive, default=256, metavar="N", help="longest answer"
    )
    generate.add_argument(
        "--system", type=utf8, metavar="TEXT", help="system prompt, if not the released one"
    )
    generate.add_argument("--temperature", type=finite, default=0.0, help="0 is greedy")
    generate.add_argument("--top-p", type=finite, default=1.0, help="nucleus sampling")
    generate.add_argument("--seed", type=seed, default=0, help="seed of the sampling")
    generate.add_argument("--dtype", choices=["bfloat16", "float32"], help="run in another dtype")
    generate.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw what was kept: .png, .jpg, .pdf or .svg"
    )
    generate.set_defaults(run=_generate)

    compare = commands.add_parser(
        "compare",
        help="ask a question under several methods: answers, tokens, operations, times, picture",
        description="Answers one question about one clip under each method, twice, so that times "
        "are those of compiled programs; prints answers, tokens and cost, and draws what each "
        "method kept.",
        formatter_class=_Help,
    )
    compare.add_argument("clip", metavar="CLIP", help="video file or URL")
    compare.add_argument(
        "question", type=utf8, metavar="QUESTION", help="what you want to know about it"
    )
    _add_methods_arguments(compare, "all,omnizip,random,fastv")
    compare.add_argument(
        "--max-new-tokens", type=positive, default=128, metavar="N", help="longest answer"
    )
    compare.add_argument(
        "--out",
        type=Path,
        default=Path("omnizip-compare"),
        metavar="FOLDER",
        help="folder to write the picture to",
    )
    compare.set_defaults(run=_compare)

    picture = commands.add_parser(
        "picture",
        help="draw what methods keep of a clip, and where the decoder attends",
        description="Draws the frames of a clip with dropped tokens dimmed, its sound and the "
        "rates of every window (the paper's Fig. 8 and 5), and what the last token of a question "
        "attends to in every layer (Fig. 2); for several methods one below the other.",
        formatter_class=_Help,
    )
    picture.add_argument("clip", metavar="CLIP", help="video file or URL")
    _add_methods_arguments(picture, "omnizip")
    picture.add_argument(
        "--question",
        type=utf8,
        default="What happens in the video?",
        metavar="TEXT",
        help="whose last token attends, and what methods inside the decoder go by",
    )
    picture.add_argument(
        "--out",
        type=Path,
        default=Path("omnizip-picture"),
        metavar="FOLDER",
        help="folder to write the pictures to",
    )
    picture.set_defaults(run=_picture)

    _add_evaluation(commands)
    add_compression_arguments(add_serve(commands))

    stream = commands.add_parser(
        "stream",
        help="watch a file, URL or camera for as long as it runs, and ask meanwhile",
        description="Feeds 2 s windows as they come and answers questions: those that you type "
        "(or pipe in), and those given with --ask. Each is answered when the window in which it "
        "was asked is complete. Memory and time per window stay flat. Ctrl-C ends it.",
        formatter_class=_Help,
    )
    stream.add_argument(
        "source",
        metavar="SOURCE",
        help="file, URL, or device:FORMAT:NAME (device:v4l2:/dev/video0)",
    )
    stream.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help='folder that `omnizip convert` wrote, or "small": the small model that comes along',
    )
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
    stream.add_argument(
        "--max-new-tokens", type=positive, default=128, metavar="N", help="longest answer"
    )
    add_compression_arguments(stream)
    stream.add_argument(
        "--capacity", type=positive, default=8192, metavar="N", help="tokens that are remembered"
    )
    stream.add_argument(
        "--memory",
        choices=["recent", "fading"],
        default="recent",
        help="what a full cache forgets: the oldest windows, or the less of each the older it is",
    )
    stream.add_argument("--sound", metavar="SOURCE", help="take the sound from here instead")
    stream.add_argument("--no-audio", action="store_true", help="leave the sound out")
    stream.add_argument("--no-video", action="store_true", help="leave the picture out")
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
    stream.add_argument(
        "--system", type=utf8, metavar="TEXT", help="system prompt, if not the released one"
    )
    stream.add_argument("--dtype", choices=["bfloat16", "float32"], help="run in another dtype")
    stream.add_argument(
        "--json", action="store_true", help="one JSON object a line: window, answer, refused, end"
    )
    stream.set_defaults(run=_stream)
    return parser


def _add_evaluation(commands: argparse._SubParsersAction) -> None:
    """What turns data sets into tables: ``questions``, ``evaluate``, ``report``."""
    questions = commands.add_parser(
        "questions",
        help="turn a benchmark as it lies on disk into a file of questions",
        description="Reads the annotations of a benchmark and writes what `omnizip evaluate` asks: "
        "one JSON object a line.",
    )
    questions.add_argument(
        "benchmark", choices=list(BENCHMARKS), metavar="BENCHMARK", help=", ".join(BENCHMARKS)
    )
    questions.add_argument(
        "annotations", type=Path, metavar="FILE", help="its JSON file, or the folder that has it"
    )
    questions.add_argument(
        "--videos", type=Path, metavar="DIR", help="folder with its videos (default: of FILE)"
    )
    questions.add_argument("--out", type=Path, required=True, metavar="QUESTIONS.jsonl")
    questions.set_defaults(run=_questions)

    evaluate = commands.add_parser(
        "evaluate",
        help="ask a file of questions about videos, and report accuracy and cost",
        description="Asks every question of a file, one JSON object a line: id, video, question, "
        "and if you like options, answer, start, end, and columns of your own. Rows are appended "
        "as they come; the same command again goes on where it was stopped.",
        formatter_class=_Help,
    )
    evaluate.add_argument("questions", type=Path, metavar="QUESTIONS.jsonl")
    evaluate.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help='folder that `omnizip convert` wrote, or "small": the small model that comes along',
    )
    evaluate.add_argument("--out", type=Path, required=True, metavar="RESULTS.jsonl")
    add_compression_arguments(evaluate)
    evaluate.add_argument(
        "--compare",
        nargs="+",
        metavar="METHOD",
        help="several methods instead, the first one the reference: all omnizip:keep=0.35 "
        "random:keep=0.35,split=true",
    )
    evaluate.add_argument(
        "--seeds", type=positive, default=3, metavar="N", help="of methods that draw"
    )
    evaluate.add_argument(
        "--protocol", default="authors", metavar="NAME", help="words and scoring: or lmms-eval"
    )
    evaluate.add_argument("--no-audio", action="store_true", help="leave the sound out")
    evaluate.add_argument("--no-video", action="store_true", help="leave the picture out")
    evaluate.add_argument(
        "--max-frames", type=positive, metavar="N", help="sample at most N frames of a long clip"
    )
    evaluate.add_argument(
        "--max-new-tokens", type=positive, metavar="N", help="longest reply (default: protocol's)"
    )
    evaluate.add_argument("--dtype", choices=["bfloat16", "float32"], help="run in another dtype")
    evaluate.add_argument(
        "--one-by-one",
        action="store_true",
        help="read no clip ahead: slower, for times that nothing disturbs",
    )
    evaluate.set_defaults(run=_evaluate)

    report = commands.add_parser(
        "report",
        help="put runs of `omnizip evaluate` side by side, as the paper's tables",
        description="Tables 1, 2, 3 and 6 and Figures 4, 6 and 7 of the paper, as far as the runs "
        "give them, with the paper's own figures beside them, marked as theirs.",
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RESULTS.jsonl")
    report.add_argument("--out", type=Path, metavar="FILE.md", help="write it here instead")
    report.set_defaults(run=_report)


def add_compression_arguments(parser: argparse.ArgumentParser) -> None:
    """What the commands that compress share: the grid, and the method with its settings."""
    parser.add_argument(
        "--grid-slots",
        type=positive,
        metavar="N",
        help="video tokens for each second, at most (default: the checkpoint's)",
    )
    group = parser.add_argument_group("compression")
    group.add_argument(
        "--method", default="omnizip", metavar="NAME", help="`omnizip methods` lists them"
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the method, rho_audio=0.4 for example; may be repeated",
    )


def _add_methods_arguments(parser: argparse.ArgumentParser, methods: str) -> None:
    """What the commands share that set methods beside each other."""
    parser.add_argument(
        "--checkpoint",
        default="small",
        metavar="DIR",
        help='folder that `omnizip convert` wrote, or "small": the small model that comes along',
    )
    parser.add_argument(
        "--methods",
        "--method",
        default=methods,
        metavar="NAMES",
        help="with commas between; `omnizip methods` lists them",
    )
    parser.add_argument(
        "--keep",
        type=finite,
        metavar="SHARE",
        help="share of all media tokens that each method keeps; `all` keeps everything",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of those methods that have it; may be repeated",
    )
    parser.add_argument(
        "--max-frames", type=positive, metavar="N", help="sample at most N frames of a long clip"
    )
    parser.add_argument(
        "--grid-slots",
        type=positive,
        metavar="N",
        help="video tokens for each second, at most (default: the checkpoint's)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="for methods that draw")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="run in another dtype")


def method_from(arguments: argparse.Namespace) -> Method:
    """The method that the command line asks for."""
    from omnizip_jax.app.methods import parse_method

    return parse_method(arguments.method, arguments.set)


def spec_from(arguments: argparse.Namespace, spec: WindowSpec) -> WindowSpec:
    """The checkpoint's shape of a window, with the grid that the command line asks for."""
    if arguments.grid_slots is None:
        return spec
    return dataclasses.replace(spec, grid_slots=arguments.grid_slots)


def _methods(arguments: argparse.Namespace) -> int:
    from omnizip_jax.app.methods import print_method, print_methods
    from omnizip_jax.app.terminal import Terminal

    if arguments.name is None:
        print_methods(Terminal())
    else:
        print_method(arguments.name, Terminal())
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    make_folder("--out", arguments.out)

    from omnizip_jax.app.demo import run, run_stream

    enable_compilation_cache()
    (run_stream if arguments.stream else run)(arguments.out, arguments.seed)
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    check_modalities(arguments)
    check_question("QUESTION", arguments.question)
    if arguments.picture is not None:
        check_picture("--picture", arguments.picture)

    import omnizip_jax
    from omnizip_jax.prompt import DEFAULT_SYSTEM

    method = method_from(arguments)
    enable_compilation_cache()
    if sys.stderr.isatty():
        print(f"[loading {arguments.checkpoint}]", file=sys.stderr)
    params = omnizip_jax.load(arguments.checkpoint, dtype=arguments.dtype)
    answer = omnizip_jax.generate(
        params,
        arguments.clip,
        arguments.question,
        compression=method,
        max_new_tokens=arguments.max_new_tokens,
        system=DEFAULT_SYSTEM if arguments.system is None else arguments.system,
        use_audio=not arguments.no_audio,
        use_video=not arguments.no_video,
        max_frames=arguments.max_frames,
        spec=spec_from(arguments, params.config.spec),
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
        on_text=lambda text: print(text, end="", flush=True),
        progress=sys.stderr.isatty(),
    )
    print()
    counts = answer.counts
    took = ", ".join(f"{name} {value:.2f} s" for name, value in answer.seconds.items())
    print(
        f"[audio {counts.audio_kept}/{counts.audio}, video {counts.video_kept}/{counts.video} "
        f"tokens = {counts.retained:.0%}; {took}]",
        file=sys.stderr,
    )
    if arguments.picture:
        from omnizip_jax.picture import plot_compression

        plot_compression(answer).savefig(arguments.picture)
        print(f"[picture: {arguments.picture}]", file=sys.stderr)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    check_question("QUESTION", arguments.question)
    make_folder("--out", arguments.out)

    from omnizip_jax.app.compare import compare

    compare(
        *_beside_each_other(arguments),
        arguments.question,
        arguments.out,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
    )
    return 0


def _picture(arguments: argparse.Namespace) -> int:
    check_question("--question", arguments.question)
    make_folder("--out", arguments.out)

    from omnizip_jax.app.compare import picture

    picture(*_beside_each_other(arguments), arguments.question, arguments.out, arguments.seed)
    return 0


def _beside_each_other(arguments: argparse.Namespace) -> tuple[Params, dict[str, Method], Clip]:
    """The model, the methods and the clip of commands that set methods beside each other."""
    import omnizip_jax
    from omnizip_jax.app.compare import check_methods, load_once
    from omnizip_jax.app.methods import parse_methods

    keep = [] if arguments.keep is None else [f"keep={arguments.keep}"]
    methods = parse_methods(arguments.methods, [*arguments.set, *keep])
    enable_compilation_cache()
    if sys.stderr.isatty():
        print(f"[loading {arguments.checkpoint}]", file=sys.stderr)
    params = omnizip_jax.load(arguments.checkpoint, dtype=arguments.dtype)
    check_methods(params, methods)
    spec = spec_from(arguments, params.config.spec)
    clip = load_once(params, arguments.clip, spec, arguments.max_frames, sys.stderr.isatty())
    return params, methods, clip


def _questions(arguments: argparse.Namespace) -> int:
    from omnizip_jax.app.reports import convert_benchmark

    convert_benchmark(arguments.benchmark, arguments.annotations, arguments.videos, arguments.out)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    check_modalities(arguments)

    import omnizip_jax
    from omnizip_jax.app.evaluate import run, settings_from
    from omnizip_jax.evaluation.questions import read_questions

    settings = settings_from(arguments)
    questions = read_questions(arguments.questions)
    enable_compilation_cache()
    if sys.stderr.isatty():
        print(f"[loading {arguments.checkpoint}]", file=sys.stderr)
    params = omnizip_jax.load(arguments.checkpoint, dtype=arguments.dtype)
    settings = dataclasses.replace(settings, spec=spec_from(arguments, params.config.spec))
    run(params, questions, settings, arguments)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from omnizip_jax.app.reports import print_report

    print_report(arguments.runs, arguments.out)
    return 0


def _stream(arguments: argparse.Namespace) -> int:
    check_modalities(arguments)
    asked = [(parse_time(time), question) for time, question in arguments.ask]
    for _, question in asked:
        check_question("--ask", question)

    import omnizip_jax
    from omnizip_jax.app.follow import Questions, begin_stream, follow
    from omnizip_jax.app.terminal import Screen, Typing, print_json
    from omnizip_jax.prompt import DEFAULT_SYSTEM

    method = method_from(arguments)

    enable_compilation_cache()
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
