"""The ``omnizip`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from omnizip_jax.config import OmniZipConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; bad input ends with a message and exit code 1."""
    argv = sys.argv[1:] if argv is None else list(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it misses torch; nothing here does
    if argv[:1] == ["convert"]:  # the script convert/hf_to_flax.py has the same arguments
        from omnizip_jax.convert import main as convert

        return convert(argv[1:], prog="omnizip convert")
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except ValueError as error:
        print(f"omnizip: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("omnizip: stopped", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The command line, as ``--help`` shows it."""
    parser = argparse.ArgumentParser(
        prog="omnizip",
        description="Ask Qwen2.5-Omni about videos with sound, reading 35-45 % of the tokens.",
        epilog="Start with `omnizip demo`: it needs no weights and no video.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="see the whole path work on a small random model and a clip made on the spot",
        description="Makes a small checkpoint in the released layout (random weights), converts "
        "it, makes a clip with moving shapes and tones, answers a question about it with all, "
        "45 % and 35 % of the tokens, and draws what was kept.",
    )
    demo.add_argument(
        "--out", type=Path, default=Path("omnizip-demo"), help="folder to write to (%(default)s)"
    )
    demo.add_argument(
        "--seconds", type=float, default=12.0, help="length of the clip (%(default)s)"
    )
    demo.set_defaults(run=_demo)

    commands.add_parser(
        "convert", help="turn released Qwen2.5-Omni weights into a Flax checkpoint, once"
    )

    generate = commands.add_parser(
        "generate",
        help="ask a question about a video file or URL",
        description="Answers one question about one video with sound.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    generate.add_argument("clip", metavar="CLIP", help="video file or URL")
    generate.add_argument("question", metavar="QUESTION", help="what you want to know about it")
    generate.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="folder that `omnizip convert` wrote"
    )
    add_compression_arguments(generate)
    generate.add_argument("--no-audio", action="store_true", help="leave the sound out")
    generate.add_argument("--no-video", action="store_true", help="leave the picture out")
    generate.add_argument(
        "--max-frames", type=int, metavar="N", help="sample at most N frames of a long clip"
    )
    generate.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="longest answer"
    )
    generate.add_argument("--system", metavar="TEXT", help="system prompt, if not the released one")
    generate.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    generate.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling")
    generate.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    generate.add_argument("--dtype", choices=["bfloat16", "float32"], help="run in another dtype")
    generate.add_argument("--picture", type=Path, metavar="PNG", help="draw what was kept")
    generate.set_defaults(run=_generate)
    return parser


def add_compression_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings of ``OmniZipConfig``, shared by the commands that compress."""
    defaults, group = OmniZipConfig(), parser.add_argument_group("compression")
    for name, text in {
        "rho_audio": "share of audio tokens that is not salient",
        "rho_video": "share of video tokens to discard",
        "rho_min": "least that a window's video is pruned",
        "rho_max": "most that a window's video is pruned",
        "merge_size": "audio tokens merged into an anchor, 0 for no anchors",
    }.items():
        default = getattr(defaults, name)
        group.add_argument(
            "--" + name.replace("_", "-"), type=type(default), default=default, help=text
        )
    group.add_argument(
        "--rule",
        choices=["paper", "published"],
        default="paper",
        help="the authors' code has its own",
    )
    group.add_argument("--no-compression", action="store_true", help="read all tokens")


def compression_from(arguments: argparse.Namespace) -> OmniZipConfig | None:
    """The rule that the command line asks for; None for all tokens."""
    if arguments.no_compression:
        return None
    names = ("rho_audio", "rho_video", "rho_min", "rho_max", "merge_size", "rule")
    return OmniZipConfig(**{name: getattr(arguments, name) for name in names})


def enable_compilation_cache() -> None:
    """Keep compiled programs between runs, in the user's cache folder."""
    import jax

    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(root / "omnizip_jax" / "xla"))


def _demo(arguments: argparse.Namespace) -> int:
    from omnizip_jax.demo.run import run

    enable_compilation_cache()
    run(arguments.out, arguments.seconds)
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    import omnizip_jax
    from omnizip_jax.prompt import DEFAULT_SYSTEM

    enable_compilation_cache()
    compression = compression_from(arguments)
    params = omnizip_jax.load(arguments.checkpoint, dtype=arguments.dtype)
    answer = omnizip_jax.generate(
        params,
        arguments.clip,
        arguments.question,
        compression=compression,
        max_new_tokens=arguments.max_new_tokens,
        system=arguments.system or DEFAULT_SYSTEM,
        use_audio=not arguments.no_audio,
        use_video=not arguments.no_video,
        max_frames=arguments.max_frames,
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
