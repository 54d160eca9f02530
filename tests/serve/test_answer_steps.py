"""Stop strings in texts that arrive in pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from omnizip_jax.serve.answer_steps import StopStrings

LETTERS = st.text("ab\n", max_size=12)


@given(st.lists(LETTERS, max_size=6), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3))
def test_pieces_give_the_same_text_as_the_whole(pieces, strings):
    stop = StopStrings(strings)
    passed = [stop.push(piece) for piece in pieces] + [stop.push("", last=True)]
    whole = "".join(pieces)
    ends = [whole.index(string) for string in strings if string in whole]
    assert "".join(passed) == stop.text
    assert stop.stopped == bool(ends)
    # A longer stop string that is complete later may begin earlier.
    if len(strings) < 2:
        assert stop.text == whole[: min(ends, default=len(whole))]
    assert not any(string in stop.text for string in strings)


def test_a_possible_beginning_is_held_back():
    stop = StopStrings(["END"])
    assert stop.push("the E") == "the " and stop.push("N") == "" and stop.push("T") == "ENT"
    assert stop.push(" EN") == " " and stop.push("D of it") == "" and stop.stopped
    assert stop.text == "the ENT " and stop.push("more") == ""
