"""``omnizip demo``: the whole path on a small random model and a clip made on the spot."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from omnizip_jax import convert
from omnizip_jax.checkpoint import Params, load
from omnizip_jax.config import OmniZipConfig
from omnizip_jax.demo.checkpoint import write_random_checkpoint
from omnizip_jax.demo.clip import write_clip
from omnizip_jax.generate import Answer, generate
from omnizip_jax.live import END, Event, Questions, WindowRead, begin, clock, follow
from omnizip_jax.media import windows
from omnizip_jax.picture import plot_compression
from omnizip_jax.terminal import Screen

QUESTION = "What happens in this video, and what can be heard?"

# The paper's two settings (section 4.1), and no compression at all.
SETTINGS: dict[str, OmniZipConfig | None] = {
    "full": None,
    "45 %": OmniZipConfig(rho_audio=0.3, rho_video=0.6),
    "35 %": OmniZipConfig(rho_audio=0.4, rho_video=0.7),
}


def run(folder: Path, seconds: float) -> None:
    """Make a checkpoint and a clip in ``folder``, answer a question, print a table, draw."""
    console = Console()
    params, clip, converted = prepare(folder, seconds, console)
    console.print(f"[bold]4.[/] Asking: {QUESTION}")
    answers = {}
    for name, compression in SETTINGS.items():
        for doing in ("compiling", "timing"):
            with console.status(f"{doing}: {name}"):
                answers[name] = generate(
                    params, clip, QUESTION, compression=compression, max_new_tokens=16
                )
    console.print(results_table(answers))
    for name, answer in answers.items():
        console.print(f"{name:>5}  {answer.text!r}", markup=False)
    picture = folder / "kept.png"
    plot_compression(answers["45 %"]).savefig(picture, dpi=130)
    console.print(f"[bold]5.[/] What was kept at 45 %: [bold]{picture}[/]")
    console.print(
        f"\nAsk something else:  omnizip generate {clip} 'What can be heard?' "
        f"--checkpoint {converted}"
    )


def run_stream(folder: Path, seconds: float) -> None:
    """Make a checkpoint and a clip in ``folder``, stream the clip, ask twice, print a table."""
    console = Console()
    params, clip, converted = prepare(folder, seconds, console)
    console.print("[bold]4.[/] Streaming it, window by window; asking in the middle and at the end")
    read: list[WindowRead] = []
    questions = Questions([(seconds / 2, "What can be seen?"), (END, QUESTION)])
    with Screen(console) as screen, windows(clip) as source:
        screen.status("compiling (once)")
        state = begin(params, OmniZipConfig(), capacity=2048, text_slots=400)

        def show(event: Event) -> None:
            screen(event)
            if isinstance(event, WindowRead):
                read.append(event)

        follow(params, state, source, questions, show, on_text=screen.text, max_new_tokens=16)
    console.print(stream_table(read))
    console.print(
        f"\nWatch on:  omnizip stream {clip} --realtime --checkpoint {converted}   "
        "and type a question"
    )


def prepare(folder: Path, seconds: float, console: Console) -> tuple[Params, Path, Path]:
    """The model, a clip, and the folder of the converted checkpoint: steps 1 to 3."""
    released, converted = folder / "released", folder / "checkpoint"
    console.print(
        "[bold]1.[/] A small checkpoint in the released layout: every part is real, the weights "
        "are [bold]random[/], so the answers are words without meaning."
    )
    shutil.rmtree(converted, ignore_errors=True)  # made by an earlier demo
    write_random_checkpoint(released, "small")
    console.print("[bold]2.[/] Converting it, as one does with the released weights.")
    convert.convert(released, converted)
    console.print("[bold]3.[/] A clip with moving shapes and tones.")
    clip = write_clip(folder / "clip.mp4", seconds=seconds)
    # bfloat16 is slow on a CPU, and what the released weights run in on a GPU.
    params = load(converted, dtype="float32" if jax.default_backend() == "cpu" else None)
    return params, clip, converted


def results_table(answers: dict[str, Answer]) -> Table:
    """Tokens and times of the same question at each setting."""
    table = Table(title="one question, three settings (times without compilation)")
    for heading in ("tokens", "audio", "video", "kept", "media", "encoders", "prefill", "answer"):
        table.add_column(heading, justify="left" if heading == "tokens" else "right")
    for name, answer in answers.items():
        counts, seconds = answer.counts, answer.seconds
        table.add_row(
            name,
            f"{counts.audio_kept}/{counts.audio}",
            f"{counts.video_kept}/{counts.video}",
            f"{counts.retained:.1%}",
            *(
                f"{seconds[stage] * 1e3:.0f} ms"
                for stage in ("media", "encoders", "prefill", "generation")
            ),
        )
    return table


def stream_table(read: list[WindowRead]) -> Table:
    """What became of every window."""
    table = Table(title="window by window")
    for heading in ("until", "audio", "video", "pruned", "cache", "time", "speed"):
        table.add_column(heading, justify="right")
    for window in read:
        table.add_row(
            clock(window.time),
            f"{window.audio_kept}/{window.audio}",
            f"{window.video_kept}/{window.video}",
            f"{window.video_rate:.0%}",
            f"{window.fill:.0%}",
            f"{window.milliseconds:.0f} ms",
            f"{window.real_time_factor:.1f}x real time",
        )
    return table
