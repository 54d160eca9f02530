"""The measurement: it answers as ``generate`` does, budgets are met, intervals are intervals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax.compression import AllTokens, OmniZipConfig
from omnizip_jax.generate import generate
from omnizip_jax.models.params import Params
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.encoders import encode_windows
from omnizip_jax.testbed import evaluate
from omnizip_jax.testbed.batches import cut
from omnizip_jax.testbed.clips import SPEC, make_clip
from omnizip_jax.testbed.losses import init_model
from omnizip_jax.testbed.model import small_config, small_tokenizer
from omnizip_jax.testbed.questions import FAMILIES, draw_question

BUDGET = OmniZipConfig(**evaluate.BUDGETS["35 %"])  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def params():
    tokenizer = small_tokenizer()
    config = ModelConfig.from_dict(small_config(tokenizer))
    weights = {k: v for k, v in init_model(config, 0).items() if k != "heads"}
    return Params(weights=weights, config=config, tokenizer=tokenizer)


@pytest.mark.slow  # compiles the whole path once more
def test_answers_are_those_of_generate(params):
    clip = make_clip(0, "validation")
    for compression in (None, BUDGET):
        text = "Which sound came first?"
        answer = generate(
            params, clip.arrays, text, compression=compression, max_new_tokens=1, spec=SPEC
        )
        methods = {"it": compression or AllTokens()}
        tokens, share = evaluate.ask(params, clip, [text, text], methods)["it"]
        np.testing.assert_array_equal(tokens, [2 * answer.token_ids])
        assert share == pytest.approx(answer.counts.retained)


@pytest.mark.slow  # compiles the whole path once more
def test_methods_keep_as_many_tokens_as_their_budget_says(params):
    windows = cut(make_clip(1, "validation"))
    encoded = encode_windows(params.weights, windows, config=params.config)
    counts = {}
    methods = evaluate.methods_at(evaluate.BUDGETS["35 %"])
    for name in ("OmniZip (G = 3)", "temporal similarity only", "random"):
        clip = jax.jit(methods[name].select)(encoded, jax.random.key(0))
        assert not (np.asarray(clip.video_keep) & ~np.asarray(encoded.video_mask)).any()
        counts[name] = int(clip.audio_keep.sum() + clip.video_keep.sum())
    assert len(set(counts.values())) == 1
    assert counts["random"] / (4 * 122) == pytest.approx(0.35, abs=0.02)


def test_the_temporal_method_keeps_what_changes(params):
    windows = cut(make_clip(1, "validation"))
    encoded = encode_windows(params.weights, windows, config=params.config)
    still = jnp.broadcast_to(encoded.video[:1, :1], encoded.video.shape)
    moved = encoded.replace(video=still.at[2, 1, 5].multiply(-1.0))
    method = evaluate.methods_at(evaluate.BUDGETS["35 %"])["temporal similarity only"]
    clip = jax.jit(method.select)(moved, jax.random.key(0))
    kept = np.asarray(clip.video_keep)
    assert kept[0, 0].all() and kept[2, 1, 5] and kept[3, 0, 5]


def test_intervals_hold_the_mean():
    values = np.random.default_rng(0).integers(0, 2, 400).astype(float)
    low, high = evaluate.interval(values)
    error = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - error, abs=0.01)
    assert high == pytest.approx(values.mean() + error, abs=0.01)


def test_the_table_compares_with_full_tokens():
    right = {
        "full tokens": np.ones((4, 1, 3), bool),
        "random | 35 %": np.array([[[1, 0, 1]] * 5] * 4, bool),
    }
    kept = {"full tokens": 1.0, "random | 35 %": 0.35}
    kinds = np.array([["silent", "count", "seen"]] * 4)
    measured = evaluate.Measurement(right, kept, kinds)
    lines = evaluate.table(measured).splitlines()
    assert all(family in lines[0] for family in FAMILIES)
    assert "| random, 35 % | 35.0% | 100.0% | 0.0% | 100.0% | 66.7% |" in lines[3]
    assert lines[3].endswith("| +0.0 (+0.0 to +0.0) | -33.3 (-33.3 to -33.3) |")
    by_kind = evaluate.table_by_kind(measured, "35 %").splitlines()
    assert by_kind[0] == "| method | count | seen | silent |"
    assert by_kind[3] == "| random, 35 % | 0% | 100% | 100% |"


def test_a_question_of_each_family_can_be_drawn_for_test_clips():
    for seed in range(20):
        things = make_clip(seed).things
        for family in FAMILIES:
            draw_question(things, np.random.default_rng([1, seed]), family)
