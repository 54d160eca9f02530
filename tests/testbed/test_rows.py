"""What is measured: every method, at equal shares."""

from __future__ import annotations

import numpy as np

from omnizip_jax import METHODS
from omnizip_jax.compression import Mixed
from omnizip_jax.testbed import rows

AUDIO, VIDEO = np.full(4, 50), np.full(4, 72)
TOKENS = int(AUDIO.sum() + VIDEO.sum())


def test_every_method_is_measured():
    measured = {type(method) for method in rows.all_rows(AUDIO, VIDEO, 28).values()}
    assert measured >= set(METHODS.values()) | {Mixed}


def test_rows_keep_what_they_say():
    for name, method in rows.all_rows(AUDIO, VIDEO, 28).items():
        _, _, share = name.partition(" | ")
        if not share or "published" in name:
            continue
        if method.stages(28):  # the layer average; its counts have tests of their own
            assert getattr(method, "keep", None) == float(share.rstrip("%")) / 100
        elif getattr(method, "causal", False):  # a bound, not a count
            assert method.bound(AUDIO, VIDEO) <= round(float(share[:-1]) / 100 * TOKENS) + 130
        else:
            assert method.bound(AUDIO, VIDEO) == round(float(share[:-1]) / 100 * TOKENS)


def test_what_a_method_cannot_keep_has_no_row():
    shallow = rows.all_rows(AUDIO, VIDEO, 4)
    assert "fastv | 25%" in shallow and "fastv | 15%" not in shallow
    assert "dycoke | 25%" in shallow and "dycoke | 15%" not in shallow
    assert "fastv | 15%" not in rows.all_rows(AUDIO, VIDEO, 28)  # five of 28 layers read all
