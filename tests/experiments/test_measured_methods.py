"""Rows of the accuracy measurement."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from experiments import measured_methods
from experiments.accuracy_questions import QUESTION_SETS
from experiments.batched_answers import encode
from experiments.clip_inputs import clip_to_windows
from experiments.oracle_methods import Oracle, Streamed
from omnizip_jax import METHODS
from omnizip_jax.compression import EVS, Mixed, TemporalOnly
from omnizip_jax.testbed.synthetic_clips import make_clip
from tests.compression import loops

AUDIO, VIDEO = np.full(4, 50), np.full(4, 72)
TOKENS = int(AUDIO.sum() + VIDEO.sum())
EASY, LONG = QUESTION_SETS["easy"], QUESTION_SETS["long"]


def test_every_method_is_measured():
    measured = {type(row.method) for row in measured_methods.rows_of(EASY, 28).values()}
    assert measured >= (set(METHODS.values()) - {TemporalOnly}) | {Mixed, Oracle}


@pytest.mark.slow
def test_temporal_only_keeps_the_tokens_of_evs(small):
    windows = encode(small, [clip_to_windows(make_clip(0, "validation"))])
    clip = jax.tree.map(lambda x: x[0], windows)
    for keep in EASY.shares:
        one, other = (loops.select(method(keep=keep), clip) for method in (EVS, TemporalOnly))
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_rows_keep_their_share():
    for name, row in measured_methods.rows_of(EASY, 28).items():
        method = row.method
        _, _, share = name.partition(" | ")
        if not share or "published" in name:
            continue
        if method.stages(28):  # the layer average; its counts have tests of their own
            assert getattr(method, "keep", None) == float(share.rstrip("%")) / 100
        elif isinstance(method, Streamed):
            assert method.method.keep == float(share.rstrip("%")) / 100
        elif getattr(method, "causal", False):  # a bound, not a count
            assert method.plan(AUDIO, VIDEO).total <= round(float(share[:-1]) / 100 * TOKENS) + 130
        else:
            assert method.plan(AUDIO, VIDEO).total == round(float(share[:-1]) / 100 * TOKENS)


def test_shares_that_a_method_cannot_keep_have_no_row():
    shallow = measured_methods.rows_of(EASY, 4)
    assert "fastv | 25%" in shallow and "fastv | 15%" not in shallow
    assert "dycoke | 25%" in shallow and "dycoke | 15%" not in shallow
    assert "fastv | 15%" not in measured_methods.rows_of(
        EASY, 28
    )  # five of 28 layers have all tokens


def test_long_clips_have_fewer_rows():
    names = set(measured_methods.rows_of(LONG, 28))
    assert names < set(measured_methods.rows_of(dataclasses.replace(LONG, thorough=True), 28))
    assert {"omnizip, causal, live audio | 25%", "oracle | 15%", "all tokens, live audio"} <= names
    methods = {measured_methods.method_of(name) for name in names}
    assert not methods & {
        *measured_methods.NOT_LONG,
        *measured_methods.MIXTURES,
        *measured_methods.ABLATIONS,
    }
    assert not any(name.endswith("45%") for name in names)


def test_mixtures_have_few_shares():
    names = set(measured_methods.rows_of(EASY, 28))
    for name in measured_methods.MIXTURES:
        shares = {share for share in EASY.shares if measured_methods.row_name(name, share) in names}
        assert shares == set(measured_methods.MIXTURE_SHARES)
