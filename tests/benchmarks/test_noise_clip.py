"""The suites call what ``generate``, ``feed`` and ``ask`` call."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from benchmarks import methods, stream
from benchmarks.noise_clip import FULL, KEEP_45, NoiseClip
from benchmarks.presets import PRESETS, random_params, random_windows
from benchmarks.run_state import Bench
from omnizip_jax.compression import METHODS
from omnizip_jax.inference import prefill
from omnizip_jax.inference.prefill import prefill_clip

CONFIG = PRESETS["tiny"].model


@pytest.fixture(scope="module")
def clip():
    return NoiseClip(Bench("tiny", windows=1))


@pytest.mark.slow
def test_a_prefill_with_and_without_the_encoders_is_the_same(clip):
    prefill = clip.prefill(KEEP_45)
    given, whole = prefill(clip.encoded), prefill()
    np.testing.assert_allclose(given.logits, whole.logits, atol=1e-5)
    assert int(given.cache.length) == int(whole.cache.length) == prefill.tokens


@pytest.mark.slow
def test_a_prefill_states_its_size(clip):
    full, packed = clip.prefill(FULL), clip.prefill(KEEP_45)
    assert full.tokens == 1 * (2 * 144 + 50) + 60
    assert packed.tokens == pytest.approx(0.45 * 338 + 60, abs=2)
    for each in (full, packed):
        assert each.tokens <= each.slots <= 1.25 * each.tokens + 32
        cache = 2 * CONFIG.text.layers * CONFIG.text.kv_heads * CONFIG.text.head_dim * 4
        assert each.result >= each.tokens * cache
        assert each.temporary > 0
    assert prefill.prefill_clip is prefill_clip


@pytest.mark.slow
def test_a_stream_can_be_set_to_any_length(monkeypatch):
    monkeypatch.setattr(stream, "CAPACITY", 2048)
    params = random_params(CONFIG, np.dtype(np.float32))
    window = jax.tree.map(lambda x: x[0], random_windows(1, CONFIG))
    ours = stream.Stream(params, KEEP_45, window)
    for length in (ours.begin, ours.full):
        ours.at(length).ask()
        assert int(ours.state.cache.length) == length
        ours.feed()
        assert length + 100 < int(ours.state.cache.length) <= ours.state.used_slots <= 2048
    ours.at(ours.full + 1).feed()  # one more would not fit
    assert int(ours.state.cache.length) < ours.full


@pytest.mark.parametrize("name", METHODS)
def test_every_method_selects_from_the_random_windows(name):
    encoded = jax.eval_shape(lambda: methods.random_encoded(2, 16, CONFIG, np.float32))
    chosen = jax.eval_shape(methods.program(METHODS[name](), encoded), encoded)
    assert chosen.audio_keep.shape == encoded.audio.token_mask.shape
    assert chosen.video_keep.shape == encoded.video_mask.shape
