"""Warnings point at the line of whoever called, and come once."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from omnizip_jax.media import load_clip, windows
from omnizip_jax.media.deferred_warnings import DeferredWarnings
from omnizip_jax.window_spec import WindowSpec
from tests.media.make import grey, write

SMALL = WindowSpec(grid_slots=12)


@pytest.fixture
def damaged(tmp_path):
    """Video and audio with some damaged packets."""
    sound = np.random.default_rng(0).normal(0, 0.1, (1, 5 * 48_000)).astype(np.float32)
    path = write(tmp_path / "a.mkv", grey(range(125)), sound=sound, rate=48_000, audio_codec="aac")
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 3, len(data) * 2 // 3, 997):
        data[at : at + 40] = b"\xff" * 40
    path.write_bytes(data)
    return path


def line():
    return sys._getframe(1).f_lineno


def test_damage_is_reported_once_per_stream_at_the_callers_line(damaged):
    with pytest.warns(UserWarning) as caught:
        here = line() + 1
        load_clip(damaged, SMALL)
    texts = [str(w.message) for w in caught]
    assert any("damaged packets of the audio" in text for text in texts)
    assert len(texts) == len(set(texts)) <= 3
    assert {(w.filename, w.lineno) for w in caught} == {(__file__, here)}
    with pytest.warns(UserWarning) as caught:
        here = line() + 1
        list(windows(damaged, SMALL))
    assert [str(w.message) for w in caught] == texts
    assert {(w.filename, w.lineno) for w in caught} == {(__file__, here)}


def test_each_text_once():
    notes = DeferredWarnings()
    for text in ("a", "b", "a"):
        notes.add(text)
    with pytest.warns(UserWarning) as caught:
        notes.emit()
        notes.add("b")
        notes.emit()
        notes.add("c")
        notes.emit()
    assert [str(w.message) for w in caught] == ["a", "b", "c"]
