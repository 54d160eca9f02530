"""QuestionGuided: a method before the decoder, then the tokens that the question attends to."""

import numpy as np
import pytest

from omnizip_jax.compression import FastV, OmniZipConfig, QuestionGuided, Seats, Surprise
from tests.compression import loops


@pytest.mark.parametrize("base", [Surprise, pytest.param(OmniZipConfig, marks=pytest.mark.slow)])
def test_a_method_keeps_more_before_the_decoder(base):
    windows = loops.encoded_clip(0)
    chosen = loops.select(QuestionGuided(base=base(), keep=0.25), windows)
    alone = loops.select(base(keep=0.35), windows)
    np.testing.assert_array_equal(chosen.audio_keep, alone.audio_keep)
    np.testing.assert_array_equal(chosen.video_keep, alone.video_keep)


@pytest.mark.parametrize("layers", [5, 28, 36])
def test_the_share_holds_over_the_layers(layers):
    for keep in (0.15, 0.45, 0.9):
        (stage,) = QuestionGuided(keep=keep).stages(layers)
        enters = min(1, 1.4 * keep)
        goes_on = stage.bound(0, 10**6) / 10**6 * enters
        mean = (stage.after * enters + (layers - stage.after) * goes_on) / layers
        assert abs(mean - keep) < 1e-5
    (stage,) = QuestionGuided().stages(28)
    assert (stage.after, stage.bound(0, 100)) == (14, 50)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="alone is more than 20%"):
        QuestionGuided(keep=0.2, after=20, ratio=2.0).stages(28)
    with pytest.raises(ValueError, match=r"ratio must be at least 1, got 0\.5"):
        QuestionGuided(ratio=0.5)
    for method in (FastV(), Seats(), QuestionGuided()):
        with pytest.raises(ValueError, match="has stages inside it, which would be lost"):
            QuestionGuided(base=method)
    with pytest.raises(ValueError, match="after must be from 1 to 27, got 28"):
        QuestionGuided(after=28)


@pytest.mark.parametrize("keep", [None, 0.5])
@pytest.mark.parametrize("method", [FastV, QuestionGuided])
def test_a_stage_after_the_last_layer_is_refused(method, keep):
    for after, layers in ((26, 5), (27, 14), (5, 1)):
        with pytest.raises(
            ValueError, match=f"after={after} of 28 layers .* a decoder of {layers},"
        ):
            method(after=after, keep=keep).stages(layers)
    assert method(after=26, keep=0.99).stages(28)[0].after == 26
    assert method(after=24).stages(5)[0].after == 4


def test_seats_in_shallow_decoders():
    for layers in (1, 3):  # no level that could be scaled
        with pytest.raises(ValueError, match=f"keep=0.3 in a decoder of {layers} layers"):
            Seats(keep=0.3).stages(layers)
    for layers in range(1, 41):
        cuts = [stage.after for stage in Seats().stages(layers)]
        assert sorted({0, layers, *cuts}) == [0, *cuts, layers]
