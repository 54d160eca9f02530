"""What is told of a window: what the cache holds of each, and what all of them cost."""

from __future__ import annotations

from collections import Counter

import jax
import numpy as np
import pytest

from omnizip_jax import OmniZipConfig, feed, init_stream
from omnizip_jax.evaluation.decoder_cost import prefill_operations
from omnizip_jax.serve.session import Session, Waiting, window_read
from tests.conftest import make_windows

pytestmark = pytest.mark.slow  # many programs


@pytest.mark.parametrize("memory", ["recent", "fading"])
def test_what_is_remembered_of_each_window(tiny, memory):
    """Numbers of windows are those that came, dropped ones included; what has left is not named."""
    windows, session = make_windows([2] * 12, [200] * 12), Session(lambda _: None)
    state = init_stream(tiny, OmniZipConfig(), capacity=640, text_slots=100, memory=memory)
    kept, left = {}, False
    for index in range(12):
        number = index if index < 3 else index + 2  # two were dropped
        window = jax.tree.map(lambda x, i=index: x[i], windows)
        before = np.asarray(state.seen), np.asarray(state.kept)
        state = feed(tiny, state, window)
        read = window_read(session, before, state, Waiting(window, number, 0.0))
        remembered = dict(read["remembered"])
        kept[number] = read["audio_kept"] + read["video_kept"]
        assert remembered[number] == kept[number] > 0 and list(remembered) == sorted(remembered)
        assert all(0 < tokens <= kept[each] for each, tokens in remembered.items())
        if left or sum(remembered.values()) < sum(kept.values()):
            left = True
        else:
            assert remembered == kept
        # Counted anew, from the slots one by one.
        slots = jax.device_get(state.state.slots)
        units = [
            int(unit)
            for kind, unit in zip(slots.kind, slots.unit, strict=True)
            if kind in (3, 4)  # sound, pictures
        ][: sum(remembered.values())]
        assert sorted(Counter(units).items()) == list(
            zip(sorted(session.units), remembered.values(), strict=True)
        )
        assert len(session.units) == len(remembered)
    assert left and (len(remembered) < 12 if memory == "recent" else remembered[0] < kept[0])
    text = int(state.state.origin)
    config = tiny.config.text
    layers = config.layers
    all_tokens = prefill_operations(config, [text + int(sum(state.seen))] * layers)
    assert read["work"] == pytest.approx(
        prefill_operations(config, [text + int(sum(state.kept))] * layers) / all_tokens
    )
