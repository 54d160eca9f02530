"""Plots: their texts and values are those of the trace, and no texts overlap."""

from __future__ import annotations

import dataclasses
import itertools
from unittest import mock

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from omnizip_jax.inference.attention_maps import AttentionMaps, layer_shares
from omnizip_jax.types import TokenKind
from omnizip_jax.visualize import (
    DIMMED,
    dim,
    plot_attention,
    plot_compression,
    plot_methods,
    plot_retention,
)
from tests.sample_answer import WINDOWS, make_answer


@pytest.fixture(scope="module")
def answer():
    return make_answer()


def pruned_inside(answer):
    """The same answer with every other token processed by half of the layers."""
    trace = answer.compression
    audio, video = layer_shares(trace)
    audio[:, ::2] /= 2
    video[..., ::2] /= 2
    trace = trace.replace(audio_depth=audio, video_depth=video)
    return dataclasses.replace(answer, compression=trace)


def boxes(figure):
    """The texts of a figure and their boxes."""
    drawn, draw = [], Text.draw

    def watched(text, renderer):
        drawn.append(text)
        draw(text, renderer)

    canvas = FigureCanvasAgg(figure)
    with mock.patch.object(Text, "draw", watched):
        canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text for text in drawn if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in texts]


def check_readable(figure):
    """Check that no text overlaps another or leaves the figure; return the texts."""
    found, whole = boxes(figure), figure.bbox
    for text, box in found:
        inside = box.x0 >= whole.x0 - 1 and box.x1 <= whole.x1 + 1
        assert inside and box.y0 >= whole.y0 - 1 and box.y1 <= whole.y1 + 1, text
    for (one, a), (other, b) in itertools.combinations(found, 2):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, (one, other)
    return [text for text, _ in found]


def test_one_method(answer):
    figure = plot_compression(answer)
    texts = " ".join(check_readable(figure))
    counts = answer.counts
    assert f"kept {counts.kept} of 800 tokens" in texts and "18-20 s" in texts
    rates = figure.axes[-1]
    heights = [bar.get_height() for bar in rates.patches]
    expected = [*answer.compression.audio_retention, *answer.compression.video_rate]
    np.testing.assert_allclose(heights, expected, atol=1e-6)


@pytest.mark.parametrize("count", [2, 4])
def test_several_methods_side_by_side(answer, count):
    answers = {f"method {i}": answer if i % 2 else pruned_inside(answer) for i in range(count)}
    figure = plot_methods(answers)
    texts = " ".join(check_readable(figure))
    audio, video = layer_shares(pruned_inside(answer).compression)
    average = (audio.sum() + video.sum()) / 800
    assert all(name in texts for name in answers)
    assert f"{average:.0%} averaged over the layers" in texts
    rates = [bar.get_height() for bar in figure.subfigs[0].axes[-1].patches]
    np.testing.assert_allclose(rates[:WINDOWS], audio.sum(1) / 50, atol=1e-6)
    np.testing.assert_allclose(rates[WINDOWS:], 1 - video.sum((1, 2)) / 30, atol=1e-6)


def test_audio_alone_has_no_frames(answer):
    clip = dataclasses.replace(answer.clip, has_video=False)
    check_readable(plot_compression(dataclasses.replace(answer, clip=clip)))


def test_an_answer_without_a_clip_cannot_be_plotted(answer):
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_compression(dataclasses.replace(answer, clip=None))


def test_brightness_is_the_share_of_layers():
    frame = np.full((4, 6, 3), 200, np.uint8)
    dimmed = dim(frame, np.array([[0, 0.5, 1]], np.float32))
    assert dimmed[0, ::2, 0].tolist() == [int(200 * DIMMED), int(200 * (1 + DIMMED) / 2), 200]


@pytest.mark.parametrize("windows", [3, 40])
def test_attention(windows):
    random = np.random.default_rng(0)
    kind = np.tile(np.repeat([TokenKind.VIDEO, TokenKind.AUDIO], [30, 50]), windows)
    media = random.random((28, len(kind))).astype(np.float32) / len(kind)
    media[10:, ::2] = np.nan
    text = 1 - np.nansum(media, 1)
    seen = AttentionMaps(media, text, kind, np.repeat(np.arange(windows), 80), 2)
    figure = plot_attention({"one": seen, "other": seen})
    texts = " ".join(check_readable(figure))
    assert f"text {text.mean():.0%}" in texts
    means = figure.axes[1].lines[0].get_xdata()
    np.testing.assert_allclose(means, np.nanmean(media[:, kind == TokenKind.AUDIO], 1), rtol=1e-4)
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape[0] == 28 and 200 < shown.shape[1] <= 1600


def test_retention():
    retained = [[4], [3, 4], [2, 3, 4]]
    figure = plot_retention(retained, [4, 4, 4], 2, {2: "asked, 00:02", 6: "asked, 00:06"})
    texts = check_readable(figure)
    assert "asked, 00:02" in texts and "asked, 00:06" in texts
    shares = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shares.diagonal(), 1)
    np.testing.assert_allclose(shares[:, -1], [0.5, 0.75, 1])
