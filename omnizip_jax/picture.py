"""The picture of what was kept: dimmed frames, and below them the paper's figure 5."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.figure import Figure

from omnizip_jax.answer import Answer
from omnizip_jax.media import window_frames

DIMMED = 0.18  # brightness of what was dropped
COLUMNS = 8  # windows whose frames are shown; more would be too small to see
AUDIO, VIDEO = "#2a7f9e", "#d1663d"


def plot_compression(answer: Answer) -> Figure:
    """Draw the frames of an answer's clip with dropped tokens dimmed, and the rates per window.

    Every column is a window: its grids one below the other (the spatial step's, then the temporal
    step's), then its audio retention S_a and its video rate (eq. 5 after Algorithm 1). Sound
    alone has the rates only.

    Raises:
        ValueError: the answer has no clip, so there is nothing to draw.
    """
    clip, trace, counts = answer.clip, answer.compression, answer.counts
    if clip is None or trace is None:
        raise ValueError("an answer without a video has nothing to draw: ask about a clip")
    clip, grids = clip.sample(COLUMNS), trace.video_keep.shape[1] if clip.has_video else 0
    shown = clip.numbers or ()
    figure = Figure(figsize=(1.9 * len(shown) + 1, 1.25 * grids + 3.2), layout="constrained")
    axes = figure.subplot_mosaic(
        [
            *([[f"{grid}/{window}" for window in shown] for grid in range(grids)]),
            ["rates"] * len(shown),
        ],
        height_ratios=[1.0] * grids + [1.3],
    )
    for place, window in enumerate(shown if grids else ()):
        one = jax.tree.map(lambda x, i=place: x[i], clip.windows)
        # The first frame of each grid.
        frames = iter(window_frames(one, clip.spec)[:: clip.spec.temporal_patch])
        rows, columns = one.grid_size
        for grid in range(grids):
            ax = axes[f"{grid}/{window}"]
            ax.set_xticks([])
            ax.set_yticks([])
            if grid == 0:
                ax.set_title(f"{window * 2}-{window * 2 + 2} s", fontsize=9)
            if one.grid_mask[grid]:
                keep = np.asarray(trace.video_keep)[window, grid, : rows * columns]
                keep = keep.reshape(rows, columns)
                ax.imshow(dim(next(frames), keep))
                ax.set_xlabel(f"{keep.sum()} of {keep.size}", fontsize=8)
            else:
                ax.axis("off")
    _draw_rates(axes["rates"], trace)
    figure.suptitle(
        f"kept {counts.kept} of {counts.media} tokens ({counts.retained:.0%}): "
        f"audio {counts.audio_kept} of {counts.audio}, video {counts.video_kept} of {counts.video}",
        fontsize=11,
    )
    return figure


def dim(
    frame: UInt8[np.ndarray, "h w 3"], keep: Bool[np.ndarray, "rows columns"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Darken the cells of a frame whose tokens were dropped."""
    height, width = frame.shape[0] // keep.shape[0], frame.shape[1] // keep.shape[1]
    brightness = np.where(keep, 1.0, DIMMED).repeat(height, 0).repeat(width, 1)
    return (frame * brightness[..., None]).astype(np.uint8)


def _draw_rates(ax, trace) -> None:
    windows = np.arange(len(trace.video_rate))
    ax.bar(windows - 0.2, trace.audio_retention, 0.4, color=AUDIO, label="audio kept, $S_a$")
    ax.bar(windows + 0.2, trace.video_rate, 0.4, color=VIDEO, label="video pruned, $\\rho_v$")
    ax.set(xlabel="window of 2 s", ylabel="share", ylim=(0, 1.05), xlim=(-0.6, len(windows) - 0.4))
    ax.locator_params(axis="x", integer=True)
    ax.legend(loc="upper right", fontsize=8, ncols=2)
