"""Cost of an answer against hand-computed numbers, loops over products, and filled caches."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from benchmarks.presets import PRESETS
from omnizip_jax import generate
from omnizip_jax.compression import METHODS, AllTokens, FastV, Method, OmniZipConfig, Seats
from omnizip_jax.compression.decoder_stages import Stage
from omnizip_jax.evaluation.decoder_cost import (
    cache_values,
    cost,
    paper_operations,
    prefill_operations,
    without_compression,
)
from omnizip_jax.inference import generation as generation_module
from omnizip_jax.inference.generation import Answer, TokenCounts
from omnizip_jax.models.config import TextConfig
from omnizip_jax.types import Selection
from tests.conftest import clip_of

FULL, KEPT_45, KEPT_35 = 21_692, 9_794, 7_631  # 64 windows with 60 tokens of text

TOY = TextConfig(
    vocabulary=11,
    layers=3,
    hidden=8,
    heads=4,
    kv_heads=2,
    ffn=5,
    rope_theta=1e4,
    mrope_section=(1, 0, 0),
    rms_eps=1e-6,
    max_positions=64,
    tied=True,
)
COUNTS = TokenCounts(audio=10, audio_kept=6, video=30, video_kept=12, text=4, generated=1)
# One window: of three layers, 3 audio and 5 video tokens pass two, 0 and 2 of them all three.
AUDIO_DEPTH = np.repeat([0, 1, 2, 3], [4, 3, 3, 0])[None] / np.float32(3)
VIDEO_DEPTH = np.repeat([3, 2, 1, 0], [2, 3, 7, 18]).reshape(1, 2, 15) / np.float32(3)
TRACE = Selection.of(*2 * (AUDIO_DEPTH > 0, VIDEO_DEPTH > 0)).replace(
    audio_depth=AUDIO_DEPTH, video_depth=VIDEO_DEPTH
)


@dataclasses.dataclass(frozen=True)
class Staged(Method):
    """``count`` stages: after the first layer, the second, and so on."""

    count: int = 0
    prunes_past: bool = False

    def stages(self, layers):
        return tuple(Stage(1 + i, prunes_past=self.prunes_past) for i in range(self.count))


def test_shares_and_caches_by_hand():
    whole = cost(TOY, Staged(), COUNTS)
    assert (whole.audio, whole.video, whole.kept) == (0.6, 0.4, 0.45)
    assert whole.kept_with_text == 22 / 44
    assert (whole.audio_by_layer, whole.by_layer) == (whole.audio, whole.kept)
    assert whole.tokens == (22, 22, 22)
    assert whole.cache_bytes == 3 * 22 * (2 * 2 * 2) * 2  # keys and values, heads, their width

    staged = cost(TOY, Staged(2), COUNTS, TRACE, value_bytes=4)
    assert staged.tokens == (22, 12, 6)
    assert (staged.audio, staged.kept_with_text) == (whole.audio, whole.kept_with_text)
    assert staged.audio_by_layer == pytest.approx((6 + 3 + 0) / 30)
    assert staged.video_by_layer == pytest.approx((12 + 5 + 2) / 90)
    assert staged.by_layer == pytest.approx((18 + 8 + 2) / 120)
    assert staged.by_layer_with_text == pytest.approx((22 + 12 + 6) / 132)
    assert staged.operations == prefill_operations(TOY, (22, 12, 6)) == 2 * staged.seats_operations
    assert staged.cache_bytes == (22 + 12 + 6) * 8 * 4

    pruned = cost(TOY, Staged(2, True), COUNTS, TRACE)
    assert pruned.cache_bytes == (6 + 6 + 6) * 8 * 2
    assert pruned.operations == staged.operations


def test_shares_of_a_missing_modality_are_one():
    silent = dataclasses.replace(COUNTS, audio=0, audio_kept=0)
    assert cost(TOY, Staged(), silent).audio == 1
    assert cost(TOY, Staged(), without_compression(COUNTS)).kept_with_text == 1


def test_a_method_with_stages_needs_a_trace():
    for trace in (None, TRACE.replace(audio_depth=None, video_depth=None)):
        with pytest.raises(ValueError, match="does not say in which layers"):
            cost(TOY, Staged(1), COUNTS, trace)


@pytest.fixture
def filled(monkeypatch):
    """Lengths of the caches that answers are decoded from, one per layer."""
    lengths: list[int] = []
    generate_tokens = generation_module.generate_tokens

    def recorded(weights: Any, states: Any, *rest: Any, **settings: Any) -> Any:
        (cache,) = (state.cache for state in states)
        for segment in cache if isinstance(cache, tuple) else (cache,):
            lengths.extend([int(segment.length)] * segment.keys.shape[0])
        return generate_tokens(weights, states, *rest, **settings)

    monkeypatch.setattr(generation_module, "generate_tokens", recorded)
    return lengths


def check_cost(config: TextConfig, method: Method, answer: Answer, filled: list[int]) -> None:
    spent = cost(config, method, answer.counts, answer.compression, value_bytes=4)
    width = config.kv_heads * config.head_dim
    assert spent.cache_bytes == sum(filled) * 2 * width * 4
    if not any(stage.prunes_past for stage in method.stages(config.layers)):
        assert list(spent.tokens) == filled
    assert len(filled) == config.layers


@pytest.mark.parametrize(
    "method", [OmniZipConfig(keep=0.45), pytest.param(FastV(), marks=pytest.mark.slow)]
)
def test_the_cache_holds_what_is_counted(small, questions, filled, method):
    video, text = questions[0].video, questions[0].text
    answer = generate(small, video, text, compression=method, max_new_tokens=4)
    check_cost(small.config.text, method, answer, filled)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [OmniZipConfig(), AllTokens(), FastV(), FastV(keep=0.6), Seats(keep=0.3)]
)
def test_the_cache_of_partial_windows(params, random_windows, filled, method):
    clip = clip_of(random_windows([2, 2, 1], [200, 200, 77]))
    answer = generate(params, clip, "What?", compression=method, max_new_tokens=1)
    check_cost(params.config.text, method, answer, filled)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastv", "seats"])
def test_the_share_by_layers_is_the_setting_of_the_method(params, random_windows, name):
    clip = clip_of(random_windows([2] * 6, [200] * 6))
    method = METHODS[name](keep=0.45)
    answer = generate(params, clip, "What?", compression=method, max_new_tokens=1)
    spent = cost(params.config.text, method, answer.counts, answer.compression)
    rounding = 1 + len(method.stages(params.config.text.layers))
    assert spent.by_layer == pytest.approx(0.45, abs=rounding / answer.counts.media)
    assert spent.kept > 0.45


@pytest.mark.parametrize(
    ("preset", "tokens", "tera"),
    [
        ("7b", FULL, 377.5),
        ("7b", KEPT_45, 147.1),
        ("7b", KEPT_35, 111.3),
        ("3b", FULL, 189.8),
        ("3b", KEPT_45, 68.5),
        ("3b", KEPT_35, 50.9),
    ],
)
def test_true_count_of_a_prefill(preset, tokens, tera):
    config = PRESETS[preset].model.text
    counted = prefill_operations(config, [tokens] * config.layers)
    assert counted == pytest.approx(tera * 1e12, rel=2e-3)


@pytest.mark.parametrize(
    ("preset", "tokens", "speedup"),
    [("7b", KEPT_45, 2.93), ("7b", KEPT_35, 3.99), ("3b", KEPT_45, 3.26), ("3b", KEPT_35, 4.56)],
)
def test_speedup_by_the_papers_equation(preset, tokens, speedup):
    config = PRESETS[preset].model.text
    full, kept = (paper_operations(config, [n] * config.layers, 0) for n in (FULL, tokens))
    assert full / kept == pytest.approx(speedup, 1e-2)


@pytest.mark.parametrize(("preset", "values"), [("3b", 36_864 / 2), ("7b", 57_344 / 2)])
def test_cache_of_one_token(preset, values):
    config = PRESETS[preset].model.text
    assert cache_values(config, [1] * config.layers) == values


@pytest.mark.parametrize("tokens", [(7, 7, 7), (9, 4, 1), (5, 5, 0)])
def test_operations_are_counted_product_by_product(tokens):
    """Every product of a row and a column, one after the other."""
    rows = {"q": 8, "k": 4, "v": 4, "o": 8, "gate": 5, "up": 5}
    multiplied = TOY.hidden * TOY.vocabulary
    for token in itertools.chain(*(range(count) for count in tokens)):
        multiplied += sum(TOY.hidden * out for out in rows.values()) + TOY.ffn * TOY.hidden
        for _head, _key in itertools.product(range(TOY.heads), range(token + 1)):
            multiplied += 2 * TOY.head_dim  # a score, and a value's part
    assert prefill_operations(TOY, tokens) == 2 * multiplied


@pytest.mark.parametrize("n", [0, 13])
def test_equation_9_as_it_is_printed(n):
    t, r, d, m = TOY.layers, 100, TOY.hidden, TOY.ffn
    prefill = t * (4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m)
    sampling_params = t * r * ((4 * d**2 + 2 * d * m) + 2 * (d * n + d * (r + 1) / 2))
    assert paper_operations(TOY, [n] * t) == prefill + sampling_params
