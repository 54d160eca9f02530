"""``omnizip generate``: a question about a clip."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from omnizip_jax.cli.arguments import check_modalities, check_picture, check_question, finite, seed
from omnizip_jax.cli.shared import (
    Help,
    add_checkpoint,
    add_clip,
    add_compression,
    add_max_frames,
    add_modalities,
    add_reply_length,
    add_system,
    load_checkpoint,
    method_from,
    spec_from,
)


def add(commands: argparse._SubParsersAction) -> None:
    """The command's arguments."""
    generate = commands.add_parser(
        "generate",
        help="ask a question about a video file or URL",
        description="Answers one question about one video with sound.",
        formatter_class=Help,
    )
    add_clip(generate)
    add_checkpoint(generate)
    add_compression(generate)
    add_modalities(generate)
    add_max_frames(generate)
    add_reply_length(generate, 256)
    add_system(generate)
    generate.add_argument("--temperature", type=finite, default=0.0, help="0 is greedy")
    generate.add_argument("--top-p", type=finite, default=1.0, help="nucleus sampling")
    generate.add_argument("--seed", type=seed, default=0, help="seed of the sampling")
    generate.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw what was kept: .png, .jpg, .pdf or .svg"
    )
    generate.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry it out; returns the exit code."""
    check_modalities(arguments)
    check_question("QUESTION", arguments.question)
    if arguments.picture is not None:
        check_picture("--picture", arguments.picture)

    import omnizip_jax
    from omnizip_jax.inference.chat_template import DEFAULT_SYSTEM

    method = method_from(arguments)
    params = load_checkpoint(arguments)
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
        from omnizip_jax.visualize import plot_compression

        plot_compression(answer).savefig(arguments.picture)
        print(f"[picture: {arguments.picture}]", file=sys.stderr)
    return 0
