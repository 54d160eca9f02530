"""Plots of kept tokens, attention and retained windows: the paper's Fig. 2, 5 and 8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from omnizip_jax.inference.attention_maps import AttentionMaps, layer_shares
from omnizip_jax.inference.generation import Answer, TokenCounts
from omnizip_jax.media import Clip, window_frames
from omnizip_jax.types import Selection, TokenKind

DIMMED = 0.18  # brightness of dropped tokens
FRAME_COLUMNS = 8  # windows whose frames are drawn, half as many with several methods
METHODS_PER_ROW = 3
ATTENTION_COLUMNS = 1500  # more tokens are averaged
AUDIO_COLOUR, VIDEO_COLOUR, UNREAD_COLOUR = "#2a7f9e", "#d1663d", "#dde2e5"
ATTENTION_COLOURS = "magma_r"
SHARE_COLOURS = LinearSegmentedColormap.from_list("share", [UNREAD_COLOUR, AUDIO_COLOUR])


def plot_compression(answer: Answer) -> Figure:
    """Draw the frames of an answer's clip with dropped tokens dimmed, and the rates per window.

    Every column is a window: its grids one below the other (the spatial step's, then the temporal
    step's), its audio tokens as a strip, then its audio retention S_a and its video rate (eq. 5
    after Algorithm 1). With a method that prunes inside the decoder, the brightness of a token is
    the share of the layers that process it, and rates are averages over the layers. A clip without
    video has the rates only.

    Raises:
        ValueError: the answer has no clip, so there is nothing to draw.
    """
    return plot_methods({"": answer})


def plot_methods(answers: Mapping[str, Answer]) -> Figure:
    """``plot_compression`` for answers by several methods, side by side, titled by their keys.

    Raises:
        ValueError: an answer has no clip.
    """
    several, shown = len(answers) > 1, []
    for name, answer in answers.items():
        if answer.clip is None or answer.compression is None:
            raise ValueError("an answer without a video has nothing to draw: ask about a clip")
        clip = answer.clip.sample(FRAME_COLUMNS // 2 if several else FRAME_COLUMNS)
        title = _title(name, answer.counts, answer.compression)
        shown.append((clip, answer.compression, title, several))
    rows = -(-len(answers) // METHODS_PER_ROW)
    columns = -(-len(answers) // rows)
    width, height = map(max, zip(*(_size(clip, several) for clip, *_ in shown), strict=True))
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    parts = figure.subfigures(rows, columns, squeeze=False, hspace=0.03, wspace=0.02)
    for each, part in zip(shown, parts.flat, strict=False):
        _draw(part, *each)
    return figure


def _size(clip: Clip, several: bool) -> tuple[float, float]:
    """Width and height in inches of a plot of the windows of ``clip``."""
    grids = clip.windows.grid_mask.shape[1] if clip.has_video else 0
    width, height = (1.2, 1.15) if several else (1.9, 1.25)
    windows = max(len(clip.windows.mel_length), 4)
    return width * windows + 1, height * grids + 0.4 * clip.has_audio + 2.4


def _draw(figure: Any, clip: Clip, trace: Selection, title: str, several: bool) -> None:
    shown = clip.window_indices or tuple(range(len(clip.windows.mel_length)))
    grids = clip.windows.grid_mask.shape[1] if clip.has_video else 0
    audio, video = layer_shares(trace)
    rows = [[f"{grid}/{window}" for window in shown] for grid in range(grids)]
    if clip.has_audio:
        rows.append([f"audio/{window}" for window in shown])
    heights = [1.0] * grids + [0.16] * clip.has_audio + [1.3]
    axes = figure.subplot_mosaic([*rows, ["rates"] * len(shown)], height_ratios=heights)
    for place, window in enumerate(shown):
        one = jax.tree.map(lambda x, i=place: x[i], clip.windows)
        # The first frame of each grid.
        frames = iter(window_frames(one, clip.spec)[:: clip.spec.temporal_patch] if grids else ())
        cells = tuple(one.grid_size)
        for grid in range(grids):
            ax = axes[f"{grid}/{window}"]
            ax.set(xticks=[], yticks=[])
            if one.grid_mask[grid]:
                read = video[window, grid, : cells[0] * cells[1]].reshape(cells)
                ax.imshow(dim(next(frames), read))
                ax.set_xlabel(f"{_count(read)} of {read.size}", fontsize=8)
            else:
                ax.axis("off")
        if clip.has_audio:
            ax, read = axes[f"audio/{window}"], audio[window]
            retention = float(trace.audio_retention[window])
            exist = round(np.count_nonzero(read) / retention) if retention > 0 else len(read)
            ax.set(xticks=[], yticks=[])
            ax.imshow(read[None, :exist], cmap=SHARE_COLOURS, vmin=0, vmax=1, aspect="auto")
            ax.set_xlabel(f"{_count(read)} of {exist}", fontsize=8)
        if rows:
            begins, ends = window * clip.spec.seconds, (window + 1) * clip.spec.seconds
            axes[rows[0][place]].set_title(f"{begins}-{ends} s", fontsize=9)
    _draw_rates(axes["rates"], trace, clip.spec.seconds)
    figure.suptitle(title, fontsize=10 if several else 11)


def dim(
    frame: UInt8[np.ndarray, "h w 3"], read: Float[np.ndarray, "rows columns"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Darken the cells of a frame by the share of layers that process them."""
    height, width = frame.shape[0] // read.shape[0], frame.shape[1] // read.shape[1]
    brightness = (DIMMED + (1 - DIMMED) * read).repeat(height, 0).repeat(width, 1)
    return (frame * brightness[..., None]).astype(np.uint8)


def _title(name: str, counts: TokenCounts, trace: Selection) -> str:
    title = (
        f"kept {counts.kept} of {counts.media} tokens ({counts.retained:.0%}): "
        f"audio {counts.audio_kept} of {counts.audio}, video {counts.video_kept} of {counts.video}"
    )
    if trace.audio_depth is not None:
        layers = sum(float(shares.sum()) for shares in layer_shares(trace)) / max(counts.media, 1)
        name = f"{name or 'pruned inside the decoder'}: {layers:.0%} averaged over the layers"
    return f"{name}\n{title}" if name else title


def _count(read: np.ndarray) -> str:
    """Number of tokens, each weighted by the share of the layers that process it."""
    return f"{read.sum():.1f}".removesuffix(".0")


def _draw_rates(ax: Any, trace: Selection, seconds: int) -> None:
    kept, pruned = np.asarray(trace.audio_retention), np.asarray(trace.video_rate)
    if trace.audio_depth is not None:
        audio, video = layer_shares(trace)
        kept = kept * audio.sum(1) / np.maximum((audio > 0).sum(1), 1)
        pruned = 1 - (1 - pruned) * video.sum((1, 2)) / np.maximum((video > 0).sum((1, 2)), 1)
    windows = np.arange(len(pruned))
    ax.bar(windows - 0.2, kept, 0.4, color=AUDIO_COLOUR, label="audio kept, $S_a$")
    ax.bar(windows + 0.2, pruned, 0.4, color=VIDEO_COLOUR, label="video pruned, $\\rho_v$")
    ax.set(xlabel=f"window of {seconds} s", ylabel="share", ylim=(0, 1.45))
    ax.set(xlim=(-0.6, len(windows) - 0.4), yticks=[0, 0.5, 1])
    ax.locator_params(axis="x", integer=True)
    ax.legend(loc="upper right", fontsize=8, ncols=2, framealpha=1)


def plot_attention(attentions: Mapping[str, AttentionMaps]) -> Figure:
    """Draw the attention of a prompt's last token with several methods: the paper's Fig. 2.

    A row is a layer, a column a token of the clip, grey where a layer does not process it. The
    strip below marks audio and video tokens: bands above the audio are the paper's finding. The
    right plot is the mean over the tokens of each modality that a layer processes. The keys are
    titles.
    """
    layers = max(len(each.media) for each in attentions.values())
    height = 1.0 + 0.11 * layers
    figure = Figure(figsize=(12, (height + 0.8) * len(attentions)), layout="constrained")
    axes = figure.subplots(
        len(attentions), 2, squeeze=False, sharex="col", sharey="row", width_ratios=[4, 1]
    )
    values = np.concatenate([each.media[each.media > 0] for each in attentions.values()])
    norm = LogNorm(*_decades(np.percentile(values, [2, 99.5]) if values.size else np.ones(1)))
    for (name, each), (ax, means_ax) in zip(attentions.items(), axes, strict=True):
        _draw_attention(ax, each, norm, 0.1 / height)
        _draw_means(means_ax, each)
        is_audio = each.kind == TokenKind.AUDIO
        parts = (each.text, *(np.nansum(each.media[:, kind], 1) for kind in (is_audio, ~is_audio)))
        text, audio, video = (f"{part.mean():.0%}" for part in parts)
        title = f"{name}: the last token attends to text {text}, audio {audio}, video {video}"
        ax.set_title(title, fontsize=10)
    axes[0, 1].set_title("mean of a token", fontsize=10)
    axes[0, 1].legend(fontsize=8)
    scale = ScalarMappable(norm, ATTENTION_COLOURS)
    bar = figure.colorbar(scale, ax=axes, shrink=1 / len(attentions) ** 0.5, label="attention")
    bar.minorformatter = NullFormatter()
    means = np.concatenate([line.get_xdata() for ax in axes[:, 1] for line in ax.lines])
    axes[0, 1].set_xlim(*_decades(means[means > 0]))
    return figure


def _draw_attention(ax: Any, each: AttentionMaps, norm: LogNorm, strip_height: float) -> None:
    """Layers against tokens, and the strip of modalities below."""
    begins = _columns(each)
    read = np.add.reduceat(~np.isnan(each.media), begins, axis=1, dtype=int)
    total = np.add.reduceat(np.nan_to_num(each.media), begins, axis=1)
    values = np.where(read > 0, total / np.maximum(read, 1), np.nan)
    extent = (0, len(begins), len(each.media) + 0.5, 0.5)
    style: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
    ax.imshow(values, norm=norm, cmap=ATTENTION_COLOURS, extent=extent, **style)
    ax.set(facecolor=UNREAD_COLOUR, ylabel="layer", xticks=[])
    ax.locator_params(axis="y", integer=True)
    strip = ax.inset_axes((0, -2 * strip_height, 1, strip_height))
    is_audio = (each.kind == TokenKind.AUDIO)[begins]
    colours = ListedColormap([VIDEO_COLOUR, AUDIO_COLOUR])
    extent = (0, len(begins), 0, 1)
    strip.imshow(is_audio[None], cmap=colours, vmin=0, vmax=1, extent=extent, **style)
    window = each.window[begins]
    starts = np.flatnonzero(np.diff(window, prepend=-1))
    marked = starts[:: -(-len(starts) // 16)]
    strip.set(yticks=[], xticks=marked)
    strip.set_xticklabels([f"{window[i] * each.seconds} s" for i in marked], fontsize=8)


def _decades(values: np.ndarray) -> tuple[float, float]:
    """Powers of ten below and above positive values."""
    if not values.size:
        return 0.1, 1.0
    low, high = np.floor(np.log10(values.min())), np.ceil(np.log10(values.max()))
    return 10.0**low, 10.0 ** max(high, low + 1)


def _columns(each: AttentionMaps) -> np.ndarray:
    """First tokens of the columns: one token, or neighbours of one window and modality."""
    group = 2 * each.window + (each.kind == TokenKind.AUDIO)
    begins = np.flatnonzero(np.diff(group, prepend=-1))
    step = -(-len(group) // ATTENTION_COLUMNS)
    ends = np.append(begins[1:], len(group))
    parts = [np.arange(a, b, step) for a, b in zip(begins, ends, strict=True)]
    return np.concatenate([np.zeros(0, int), *parts])


def _draw_means(ax: Any, each: AttentionMaps) -> None:
    layers = np.arange(1, len(each.media) + 1)
    for kind, colour, label in ((True, AUDIO_COLOUR, "audio"), (False, VIDEO_COLOUR, "video")):
        media = each.media[:, (each.kind == TokenKind.AUDIO) == kind]
        mean = np.ma.masked_invalid(media).mean(1).filled(np.nan)
        ax.plot(mean, layers, "o-", color=colour, label=label, markersize=3)
    ax.set_xscale("log")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(labelsize=8)
    ax.grid(axis="x", alpha=0.3)


def plot_retention(
    retained: Sequence[Sequence[int]],
    initial: Sequence[int],
    seconds: int,
    marks: Mapping[float, str],
) -> Figure:
    """Draw the share of each window's kept tokens that a stream's cache retains over time.

    Args:
        retained: after every window, the tokens of each window so far in the cache.
        initial: the tokens of each window when it was added.
        seconds: duration of a window.
        marks: labels of stream times, in seconds.
    """
    count = len(retained)
    shares = np.full((count, count), np.nan)
    for now, tokens in enumerate(retained):
        shares[: now + 1, now] = np.array(tokens) / np.maximum(initial[: now + 1], 1)
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    ax, end = figure.subplots(), count * seconds
    extent = (seconds / 2, end + seconds / 2, 0, end)  # columns are centred on ends of windows
    style: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest", "origin": "lower"}
    image = ax.imshow(shares, cmap=SHARE_COLOURS, vmin=0, vmax=1, extent=extent, **style)
    for time in marks:
        ax.axvline(time, color=VIDEO_COLOUR, linestyle=":")
    ax.secondary_xaxis("top").set_xticks(list(marks), list(marks.values()), fontsize=8)
    ax.set(xlabel="stream time, s", ylabel="window added at second", xlim=(0, extent[1]))
    ax.set_title("share of each window's kept tokens that the cache retains", fontsize=11)
    figure.colorbar(image, ax=ax)
    return figure
