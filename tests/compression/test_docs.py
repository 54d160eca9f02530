"""docs/methods.md: its example is a method like the others, and its numbers are true."""

import contextlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from omnizip_jax.compression import METHODS, Mixed, OmniZipConfig, Seats, VisionZip
from omnizip_jax.compression.omnizip_streaming import nominal_rates
from tests.compression import loops
from tests.compression.oracle import half_even

DOCS = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()


@pytest.fixture(scope="module")
def longest():
    source = re.search(r"executed by .*?-->\n```python\n(.*?)```", DOCS, re.DOTALL)
    assert source and source[1].count("\n") < 40
    names = {"__name__": "example"}
    exec(compile(source[1], "docs/methods.md", "exec"), names)
    return names["Longest"]


@pytest.mark.parametrize(
    "settings", [{"keep": 0.35}, {"shortest": True, "rho_video": 0.7}], ids=str
)
def test_the_example_is_a_method(longest, settings):
    method, windows = longest(**settings), loops.encoded_clip(1, scattered=True)
    chosen = loops.select(method, windows)
    audio, video = (int(n.sum()) for n in loops.sizes(windows))
    counts = half_even(0.55, audio), half_even(0.3, video)
    if method.keep is not None:
        counts = loops.line(method.keep, windows)
    sign = -1 if method.shortest else 1
    for keep, tokens, mask, count in (
        (chosen.audio_keep, windows.audio.tokens, windows.audio.token_mask, counts[0]),
        (chosen.video_keep, windows.video, windows.video_mask, counts[1]),
    ):
        lengths = sign * np.linalg.norm(np.float64(tokens), axis=-1)
        np.testing.assert_array_equal(keep, loops.top(lengths, mask, count))
    assert method.plan(*loops.sizes(windows)).total == sum(counts)


def test_the_example_streams_and_mixes(longest):
    windows = loops.encoded_clip(2)
    sizes = loops.sizes(windows)
    chosen = loops.stream(longest(keep=0.4), windows)
    kept = chosen.audio_keep.sum(-1) + chosen.video_keep.sum((1, 2))
    assert np.cumsum(kept).tolist() == [half_even(0.4, n) for n in np.cumsum(sum(sizes))]
    mixed = Mixed(audio=OmniZipConfig(), video=longest(), keep=0.4)
    chosen = loops.select(mixed, windows)
    assert chosen.audio_keep.sum() + chosen.video_keep.sum() == mixed.plan(*sizes).total


def test_every_method_has_its_row():
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", DOCS, re.MULTILINE))
    assert rows == {name: method.__name__ for name, method in METHODS.items()}


def test_streaming_methods_are_those_of_the_table():
    said = dict(re.findall(r"^\| `(\w+)` \|.*\| ([a-z ]+) \|$", DOCS, re.MULTILINE))
    # A stream begins before there is a window: its shapes and types must do.
    first = jax.eval_shape(lambda: jax.tree.map(lambda x: x[0], loops.encoded_clip(0)))
    methods = [(kind(), said[name] == "yes") for name, kind in METHODS.items()]
    for method, streams in [
        *methods,
        (VisionZip(per_window=True), True),
        (Seats(before_only=True), True),
    ]:
        assert method.streams == streams
        with contextlib.nullcontext() if streams else pytest.raises(ValueError, match="stream"):
            method.begin(first)


def test_shares_of_the_paper_s_settings():
    for share, rates in (("0.4503", (0.3, 0.6)), ("0.3503", (0.4, 0.7))):
        assert f"`keep={share}`" in DOCS
        found = nominal_rates(OmniZipConfig(keep=float(share)), 50, 288)
        np.testing.assert_allclose(found, rates, atol=2e-4)
    _, rho_video = nominal_rates(OmniZipConfig(keep=0.25), 50, 288)
    assert round(rho_video, 2) == 0.80 and round((1 + rho_video) / 2, 2) == 0.90
