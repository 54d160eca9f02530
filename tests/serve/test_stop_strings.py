"""Answers end before a word, wherever the pieces are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnizip_jax.serve.stop_strings import Stop

pytestmark = pytest.mark.slow  # many programs, sockets and processes

LETTERS = st.text("ab\n", max_size=12)


@given(st.lists(LETTERS, max_size=6), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3))
def test_as_if_it_had_come_at_once(pieces, words):
    stop = Stop(words)
    shown = [stop.push(piece) for piece in pieces] + [stop.push("", last=True)]
    whole = "".join(pieces)
    ends = [whole.index(word) for word in words if word in whole]
    assert "".join(shown) == stop.text
    assert stop.stopped == bool(ends)
    # A longer word that is complete later may begin earlier.
    if len(words) < 2:
        assert stop.text == whole[: min(ends, default=len(whole))]
    assert not any(word in stop.text for word in words)


def test_what_may_begin_a_word_is_held_back():
    stop = Stop(["END"])
    assert stop.push("the E") == "the " and stop.push("N") == "" and stop.push("T") == "ENT"
    assert stop.push(" EN") == " " and stop.push("D of it") == "" and stop.stopped
    assert stop.text == "the ENT " and stop.push("more") == ""
