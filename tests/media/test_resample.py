"""Any number of channels to one."""

from __future__ import annotations

import av
import numpy as np
import pytest

from omnizip_jax.media import load_clip
from omnizip_jax.media.resample import Resampler
from tests.media.make import tone, write


@pytest.mark.parametrize("layout", ["stereo", "5.1", "7.1", "hexadecagonal", "22.2"])
def test_channels_are_averaged_whatever_their_number(layout):
    channels = av.AudioLayout(layout).nb_channels
    samples = np.random.default_rng(0).normal(0, 0.1, (4_000, channels)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "flt", layout)
    frame.sample_rate, frame.pts = 16_000, 0
    resampler = Resampler()
    sounds = [*resampler.push(frame), *resampler.finish()]
    mono = np.concatenate([sound.samples for sound in sounds])
    np.testing.assert_allclose(mono, samples.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(("kind", "codec"), [("wav", "pcm_s16le"), ("flac", "flac")])
def test_a_file_with_eight_channels(tmp_path, kind, codec):
    sound = tone(2.0, channels=8) * np.arange(1, 9, dtype=np.float32)[:, None] / 8
    path = tmp_path / f"a.{kind}"
    if codec == "flac":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("flac", rate=16_000, layout="7.1")
            integers = np.round(sound * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(integers.T.reshape(1, -1), "s16", "7.1")
            frame.sample_rate, frame.pts = 16_000, 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    else:
        write(path, sound=sound, layout="7.1", audio_codec=codec)
    ours = load_clip(path).windows.mel
    expected = load_clip((None, 1, sound.mean(axis=0), 16_000)).windows.mel
    np.testing.assert_allclose(ours.max(1), expected.max(1), atol=0.01)
