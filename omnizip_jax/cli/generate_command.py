"""``omnizip generate`` and ``omnizip methods``."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys

from rich import box
from rich.table import Table

from omnizip_jax.cli.console import OutputConsole
from omnizip_jax.cli.model_setup import load_checkpoint, parse_method, window_spec
from omnizip_jax.compression import METHODS
from omnizip_jax.compression.decoder_stages import PUBLISHED_LAYERS
from omnizip_jax.inference.api import generate
from omnizip_jax.inference.chat_template import DEFAULT_SYSTEM
from omnizip_jax.visualize import plot_compression


def run_generate(arguments: argparse.Namespace) -> None:
    """Print the answer as it is generated, then tokens and times on stderr."""
    method = parse_method(arguments.method, arguments.set)
    params = load_checkpoint(arguments.checkpoint, arguments.dtype)
    answer = generate(
        params,
        arguments.clip,
        arguments.question,
        compression=method,
        max_new_tokens=arguments.max_new_tokens,
        system=DEFAULT_SYSTEM if arguments.system is None else arguments.system,
        use_audio=not arguments.no_audio,
        use_video=not arguments.no_video,
        max_frames=arguments.max_frames,
        spec=window_spec(arguments, params.config.spec),
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
        audio_stream=arguments.audio_stream,
        video_stream=arguments.video_stream,
        on_text=lambda text: print(text, end="", flush=True),
        progress=sys.stderr.isatty(),
    )
    print()
    counts = answer.counts
    seconds = ", ".join(f"{stage} {value:.2f} s" for stage, value in answer.seconds.items())
    print(
        f"[audio {counts.audio_kept}/{counts.audio}, video {counts.video_kept}/{counts.video} "
        f"tokens = {counts.retained:.0%}; {seconds}]",
        file=sys.stderr,
    )
    if arguments.picture:
        plot_compression(answer).savefig(arguments.picture)
        print(f"[picture: {arguments.picture}]", file=sys.stderr)


def run_methods(arguments: argparse.Namespace) -> None:
    """List the methods, or the settings of one."""
    console = OutputConsole()
    if arguments.name is not None:
        kind = type(parse_method(arguments.name, ()))
        console.print(inspect.getdoc(kind), markup=False, highlight=False)
        table = Table("setting", "default", box=box.SIMPLE_HEAD, pad_edge=False)
        for field in dataclasses.fields(kind):
            table.add_row(field.name, str(field.default))
        console.print(table)
        return
    headings = ("method", "streams", "in decoder", "description")
    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)
    for name, kind in METHODS.items():
        method = kind()
        properties = (
            "yes" if each else "" for each in (method.streams, method.stages(PUBLISHED_LAYERS))
        )
        summary = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        summary = summary.replace("``", "").partition(";")[0].rstrip(".")
        table.add_row(name, *properties, summary)
    console.print(table)
    console.print("Settings of one method: omnizip methods NAME", highlight=False)
