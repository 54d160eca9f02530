"""Invalid arguments are refused with a message."""

from __future__ import annotations

import numpy as np
import pytest

from omnizip_jax.media import PushSource, load_clip, windows
from omnizip_jax.window_spec import WindowSpec
from tests.media.make import grey, tone, write

SMALL = WindowSpec(grid_slots=12)
WAYS = {
    "load_clip": lambda source, **options: load_clip(source, SMALL, **options),
    "windows": lambda source, **options: list(windows(source, SMALL, **options)),
}


@pytest.mark.parametrize("max_frames", [2.5, 1, -4, "8", float("nan")])
def test_max_frames(max_frames):
    with pytest.raises(ValueError, match="max_frames must be an integer"):
        load_clip((grey([50] * 8), 2.0, None, 0), SMALL, max_frames=max_frames)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("source", [grey([50]), tone(1.0)[0], 3, None, b"a.mp4", [grey([50]), 2]])
def test_sources_of_a_wrong_type(way, source):
    with pytest.raises(ValueError, match=r"in a tuple, got (ndarray|int|NoneType|bytes|list)"):
        WAYS[way](source)


@pytest.mark.parametrize("way", WAYS)
def test_tuples_of_a_wrong_length(way):
    with pytest.raises(ValueError, match="sample_rate"):
        WAYS[way]((grey([50]), 2.0))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [1e38, -1e38, np.inf, np.nan])
def test_samples_that_are_not_finite_or_too_loud(way, dtype, value):
    wave = tone(1.0)[0].astype(dtype)
    wave[100] = value
    with pytest.raises(ValueError, match=r"within -1\.\.1"):
        WAYS[way]((None, 1, wave, 44_100))
    with pytest.raises(ValueError, match=r"within -1\.\.1"):
        PushSource().push_audio(wave)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": "2"}, "fps must be"),
        ({"fps": None}, "fps must be"),
        ({"sample_rate": "16000"}, "sample_rate must be"),
        ({"sample_rate": None}, "sample_rate must be"),
        ({"sample_rate": float("nan")}, "sample_rate must be"),
        ({"sample_rate": 16_000.5}, "sample_rate must be"),
    ],
)
def test_rates_of_a_wrong_type(way, change, message):
    good = {"frames": grey([0] * 4), "fps": 2.0, "waveform": tone(1.0)[0], "sample_rate": 16_000}
    with pytest.raises(ValueError, match=message):
        WAYS[way](tuple((good | change).values()))
    if "sample_rate" in change:
        with pytest.raises(ValueError, match=message):
            PushSource(**change)


@pytest.mark.parametrize("way", WAYS)
def test_a_path_below_home(tmp_path, monkeypatch, way):
    write(tmp_path / "a.mkv", grey([50] * 50))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert WAYS[way]("~/a.mkv")
    with pytest.raises(ValueError, match=f"{tmp_path}/missing.mkv: "):
        WAYS[way]("~/missing.mkv")


@pytest.mark.parametrize("queue", [0, 1.5, "4", float("nan")])
def test_queue(queue):
    with pytest.raises(ValueError, match="queue must be"):
        windows((grey([50]), 2.0, None, 0), SMALL, queue=queue)


@pytest.mark.parametrize("field", ["patch", "merge", "temporal_patch", "mel_bins"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "2"])
def test_fields_of_a_window(field, value):
    with pytest.raises(ValueError, match=f"WindowSpec.{field} must be a positive integer"):
        WindowSpec(**{field: value})
