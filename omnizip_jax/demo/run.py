"""``omnizip demo``: the whole path on a small random model and a clip made on the spot."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from omnizip_jax import convert
from omnizip_jax.checkpoint import load
from omnizip_jax.config import OmniZipConfig
from omnizip_jax.demo.checkpoint import write_random_checkpoint
from omnizip_jax.demo.clip import write_clip
from omnizip_jax.generate import Answer, generate
from omnizip_jax.picture import plot_compression

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
    console.print(f"[bold]4.[/] Asking: {QUESTION}")
    # bfloat16 is slow on a CPU, and what the released weights run in on a GPU.
    params = load(converted, dtype="float32" if jax.default_backend() == "cpu" else None)
    answers = {}
    for name, compression in SETTINGS.items():
        for _ in range(2):  # the first run compiles; the second is timed
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
