"""Threads that read ahead: their errors, and their end."""

from __future__ import annotations

import threading
import traceback

import pytest

from omnizip_jax.media import windows
from omnizip_jax.media.bounded_queue import prefetch, run_in_thread
from omnizip_jax.window_spec import WindowSpec
from tests.media.make import grey


def lines(error):
    """Where an error and its causes come from."""
    found = []
    while error is not None:
        found += [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        error = error.__cause__
    return found


def broken():
    raise KeyError("oops")


def test_an_error_of_a_thread_keeps_its_traceback():
    with pytest.raises(ValueError, match=r"a\.mp4: KeyError: 'oops'") as caught:
        run_in_thread(broken, "a.mp4")
    assert isinstance(caught.value.__cause__, KeyError) and "broken" in lines(caught.value)


def test_so_does_an_error_while_windows_are_made(monkeypatch):
    monkeypatch.setattr("omnizip_jax.media.windowing.patchify", lambda *_: broken())
    with pytest.raises(ValueError, match="arrays: KeyError") as caught:
        list(windows((grey([50] * 8), 2.0, None, 0), WindowSpec(grid_slots=12)))
    assert {"broken", "_add"} <= set(lines(caught.value))


def test_items_keep_their_order_and_the_reader_ends_with_its_consumer():
    closed = threading.Event()

    def count():
        try:
            yield from range(1_000)
        finally:
            closed.set()

    assert list(prefetch(count(), "numbers", 4)) == list(range(1_000))
    closed.clear()
    items = prefetch(count(), "numbers", 4)
    assert next(items) == 0 and not closed.is_set()
    items.close()
    assert closed.wait(2)


def test_results_of_a_thread():
    assert run_in_thread(lambda: 42, "answer") == 42
