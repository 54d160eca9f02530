"""The rivals against float64 loops, and what holds for every method."""

import jax
import numpy as np
import pytest

from omnizip_jax.compression import (
    EVS,
    METHODS,
    DyCoke,
    Mixed,
    OmniZipConfig,
    QuestionGuided,
    RandomTokens,
    Seats,
    TemporalOnly,
    VidCom2,
    VisionZip,
)
from omnizip_jax.compression.fastv import FastV
from omnizip_jax.compression.seats import LEVELS, schedule
from omnizip_jax.types import AudioFeatures, EncodedWindow, VisionFeatures
from tests.compression import loops
from tests.compression import oracle_rivals as oracle
from tests.compression.loops import select, stream
from tests.compression.oracle import half_even


def clip(seed, **shape):
    return loops.encoded_clip(seed, scattered=seed % 2 == 1, vision=True, **shape)


def counts(method, windows):
    """Audio and video tokens to keep: the share's, or those of the rates."""
    if method.keep is not None:
        return loops.line(method.keep, windows)
    rates = method.rho_audio, method.rho_video
    sizes = (int(n.sum()) for n in loops.sizes(windows))
    return tuple(half_even(round(1 - r, 6), n) for r, n in zip(rates, sizes, strict=True))


def mask_of(tokens, shape):
    mask = np.zeros(shape, bool)
    for token in tokens:
        mask[token] = True
    return mask


def assert_salient_sound(chosen, windows, count):
    expected = loops.top(loops.audio_scores(windows.audio), windows.audio.token_mask, count)
    np.testing.assert_array_equal(chosen.audio_keep, expected)


@pytest.mark.parametrize("keep", [None, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_evs(seed, keep):
    method, windows = EVS(keep=keep), clip(seed)
    chosen = select(method, windows)
    audio, video = counts(method, windows)
    if keep is None:
        first = int(windows.video_mask[loops.grids_in_order(windows)[0]].sum())
        video = max(first, int(windows.video_mask.sum()) // 4)
    expected = loops.top(oracle.change(windows), windows.video_mask, video)
    np.testing.assert_array_equal(chosen.video_keep, expected)
    assert_salient_sound(chosen, windows, audio)


@pytest.mark.slow
def test_evs_keeps_at_least_the_first_grid():
    windows = loops.encoded_clip(0, windows=2, holes=False)
    chosen = select(EVS(rho_video=0.95), windows)
    np.testing.assert_array_equal(chosen.video_keep[0, 0], windows.video_mask[0, 0])
    assert chosen.video_keep.sum() == windows.video_mask[0, 0].sum()


@pytest.mark.parametrize(
    "settings", [{}, {"rho_video": 0.75, "audio_frame": 6}, {"keep": 0.35}], ids=str
)
@pytest.mark.parametrize("seed", range(4))
def test_dycoke(seed, settings):
    method, windows = DyCoke(**settings), clip(seed, windows=7, audio=27, grids=3)
    chosen = select(method, windows)
    audio, video = (int(n.sum()) for n in loops.sizes(windows))
    if method.keep is None:
        kept = counts(method, windows)
    else:
        kept = half_even(method.keep, audio), half_even(method.keep, audio + video)
        kept = kept[0], kept[1] - kept[0]
    heard, seen = oracle.dycoke(windows, *kept, method.audio_frame)
    np.testing.assert_array_equal(chosen.audio_keep, mask_of(heard, chosen.audio_keep.shape))
    np.testing.assert_array_equal(chosen.video_keep, mask_of(seen, chosen.video_keep.shape))


@pytest.mark.slow
def test_dycoke_is_the_published_rate_on_whole_groups():
    """k = 2/3 keeps ``int((1 - k) N)`` of every compared frame; the last frame 2 stays whole."""
    windows = loops.encoded_clip(0, windows=6, grids=2, slots=15, holes=False)
    of_frames = [15, 5, 5, 5, 15, 5, 5, 5, 15, 5, 15, 5]
    rho = 1 - sum(of_frames) / 180
    chosen = select(DyCoke(rho_video=rho), windows)
    assert np.asarray(chosen.video_keep).sum(-1).reshape(-1).tolist() == of_frames


@pytest.mark.parametrize("settings", [{}, {"keep": 0.3}, {"per_window": True}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_visionzip(seed, settings):
    method, windows = VisionZip(**settings), clip(seed)
    chosen = select(method, windows)
    audio, video = counts(method, windows)
    tokens = [tuple(int(x) for x in i) for i in np.argwhere(windows.video_mask)]
    groups, numbers = [tokens], [video]
    if method.per_window:
        groups = [[t for t in tokens if t[0] == w] for w in range(len(windows.video))]
        numbers = oracle.apportion(video, [len(group) for group in groups])
    expected, salient = np.float64(windows.video), []
    kept = []
    for group, number in zip(groups, numbers, strict=True):
        vision = windows.vision
        dominant, targets, grown = oracle.visionzip(
            group, vision.received, vision.keys, windows.video, number, method.contextual
        )
        kept, salient = kept + dominant + targets, salient + dominant
        for token, row in grown.items():
            expected[token] = row
    np.testing.assert_array_equal(chosen.video_keep, mask_of(kept, windows.video_mask.shape))
    keep = np.asarray(chosen.video_keep)
    np.testing.assert_allclose(np.asarray(chosen.video)[keep], expected[keep], atol=1e-4)
    assert 0 < len(salient) < len(kept)
    assert_salient_sound(chosen, windows, audio)


@pytest.mark.parametrize("keep", [None, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_vidcom2(seed, keep):
    method, windows = VidCom2(keep=keep), clip(seed)
    chosen = select(method, windows)
    audio, video = counts(method, windows)
    expected, of_grids = oracle.vidcom2(windows, video)
    np.testing.assert_array_equal(chosen.video_keep, expected)
    assert (
        np.ptp(
            of_grids
            / np.array([windows.video_mask[g].sum() for g in loops.grids_in_order(windows)])
        )
        > 0.05
    )
    assert_salient_sound(chosen, windows, audio)


@pytest.mark.parametrize(
    "settings", [{}, {"keep": 0.35}, {"keep": 0.25, "before_only": True}], ids=str
)
@pytest.mark.parametrize("seed", range(3))
def test_seats(seed, settings):
    method, windows = Seats(**settings), clip(seed)
    chosen = select(method, windows)
    audio, video = loops.sizes(windows)
    factor = 1 if method.before_only else 1.4
    if method.keep is None:
        heard, seen = (
            [min(max(half_even(round(1.4 * target, 6), n), 1), n) for n in sizes]
            for target, sizes in ((method.target_audio, audio), (method.target_video, video))
        )
    else:
        tokens = audio.sum() + video.sum()
        total = half_even(round(factor * method.keep, 6), tokens)
        share = (total + factor * 0.35 * video.sum()) / tokens
        of_audio = min(round(round(share * audio.sum() * 1024) / 1024), total, audio.sum())
        of_audio = max(of_audio, total - video.sum())
        heard = oracle.apportion(int(of_audio), audio.tolist())
        seen = oracle.apportion(int(total - of_audio), video.tolist())
    for w in range(len(audio)):
        mask, frames = windows.audio.token_mask[w], windows.audio.frame_mask[w]
        score = np.zeros(len(frames))
        if frames.any():
            score[frames] = loops.received(
                windows.audio.queries[w][frames], windows.audio.keys[w][frames]
            )
        score = score.reshape(-1, 2).mean(1)
        index = np.flatnonzero(mask)
        picks = index[oracle.spread(windows.audio.tokens[w][index], score[index], heard[w])]
        np.testing.assert_array_equal(np.flatnonzero(chosen.audio_keep[w]), np.sort(picks))
        index = np.flatnonzero(windows.video_mask[w])
        features = windows.video[w].reshape(-1, windows.video.shape[-1])[index]
        score = windows.vision.received[w].reshape(-1)[index]
        picks = index[oracle.spread(features, score, seen[w])]
        np.testing.assert_array_equal(np.flatnonzero(chosen.video_keep[w]), np.sort(picks))


def test_the_mean_of_the_schedule_of_seats_is_the_target():
    assert [last for last, _ in schedule(28)] == [16, 18, 20, 23, 28]
    assert [last for last, _ in schedule(14)] == [8, 9, 10, 12, 14]
    starts = [0, *(last for last, _ in LEVELS)]
    mean = sum((last - start) * level for start, (last, level) in zip(starts, LEVELS, strict=False))
    assert abs(mean / 28 - 1) < 1e-3


def test_fastv_holds_the_share_over_the_layers():
    assert [FastV().stages(n)[0].after for n in (28, 36, 8, 2)] == [5, 6, 1, 1]
    (stage,) = FastV(keep=0.45).stages(28)
    after = stage.bound(0, 10**6) / 10**6
    assert abs((5 + 23 * after) / 28 - 0.45) < 1e-6
    with pytest.raises(ValueError, match=r"in 5 of 28 layers: keep at least 0\.179, got 0\.15"):
        FastV(keep=0.15).stages(28)


def test_unreachable_shares_are_refused():
    with pytest.raises(ValueError, match=r"the least share is 0\.25, got 0\.15"):
        DyCoke(keep=0.15)
    with pytest.raises(ValueError, match=r"the least share is 0\.25, got 0\.2"):
        DyCoke(rho_video=0.8)
    windows = loops.encoded_clip(0)
    for method in (VisionZip(), Seats()):
        with pytest.raises(ValueError, match="vision encoder's last block"):
            select(method, windows)


def test_parts_of_a_mixture_have_rates_and_no_share():
    for part in (RandomTokens(keep=0.3), OmniZipConfig(keep=0.3), Mixed(EVS(), EVS(), keep=0.3)):
        for keep in (None, 0.5):
            with pytest.raises(ValueError, match=r"audio has keep=0\.3, a share of the tokens"):
                Mixed(audio=part, video=OmniZipConfig(), keep=keep)
            with pytest.raises(ValueError, match=r"video has keep=0\.3, a share of the tokens"):
                Mixed(audio=OmniZipConfig(), video=part, keep=keep)
    for part in (Seats(), OmniZipConfig(causal=True)):
        with pytest.raises(ValueError, match="video must select the tokens of a whole clip"):
            Mixed(audio=EVS(), video=part)


MIXED = {
    "istc with random": Mixed(audio=RandomTokens(rho_audio=0.25), video=OmniZipConfig()),
    "dycoke with omnizip": Mixed(audio=OmniZipConfig(), video=DyCoke(), keep=0.45),
    "visionzip with omnizip": Mixed(audio=OmniZipConfig(), video=VisionZip(), keep=0.3),
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.slow
def test_mixtures_take_a_part_of_each(name):
    method = MIXED[name]
    for seed in range(3):
        windows = clip(seed)
        chosen = select(method, windows)
        sizes = loops.sizes(windows)
        kept = int(chosen.audio_keep.sum() + chosen.video_keep.sum())
        assert kept == method.plan(*sizes).total
        if method.keep is not None:
            assert kept == half_even(method.keep, sum(n.sum() for n in sizes))
            anchors = chosen.audio_keep & ~chosen.audio_salient
            assert anchors.sum() == sum(half_even(0.05, n) for n in sizes[0])
    if name == "istc with random":
        alone = select(OmniZipConfig(), windows)
        assert chosen.video_keep.sum() == alone.video_keep.sum()
        assert np.any(chosen.video_rate != alone.video_rate)  # guided by the sound that is here
    both = Mixed(audio=OmniZipConfig(), video=OmniZipConfig())
    same, alone = select(both, windows), select(OmniZipConfig(), windows)
    np.testing.assert_array_equal(same.audio_keep, alone.audio_keep)
    np.testing.assert_array_equal(same.video_keep, alone.video_keep)


EVERY = {name: method() for name, method in METHODS.items()} | MIXED
SHARES = {
    f"{name}, keep": METHODS[name](keep=0.3) for name in METHODS if name not in ("published", "all")
}


# Shares whose selection differs from that of the rates in more than the counts.
OWN_SHARES = ("evs, keep", "visionzip, keep", "seats, keep")
# OmniZip's own tests compare these with float64 loops and with recorded vectors.
FAST = {*EVERY, *OWN_SHARES} - {"omnizip", "published"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in EVERY | SHARES],
)
def test_what_always_holds(name):
    method = (EVERY | SHARES)[name]
    programs = loops.select_program._cache_size()

    full, initial = clip(0), clip(1)
    empty = np.zeros_like(initial.audio.token_mask)
    no_audio = initial.replace(
        audio=initial.audio.replace(
            token_mask=empty, frame_mask=np.zeros_like(initial.audio.frame_mask)
        )
    )
    no_video = initial.replace(video_mask=np.zeros_like(initial.video_mask))
    for windows in (full, clip(3), no_audio, no_video):
        budget = method.plan(*loops.sizes(windows))
        chosen = jax.tree.map(np.asarray, loops.run(method, windows, budget))
        assert not np.any(chosen.audio_keep & ~windows.audio.token_mask)
        assert not np.any(chosen.video_keep & ~windows.video_mask)
        kept = chosen.audio_keep.sum() + chosen.video_keep.sum()
        sizes = loops.sizes(windows)
        assert kept <= method.plan(*sizes).total
        if name in SHARES and not isinstance(method, FastV):  # its share is one of the layers
            factor = 1.4 if isinstance(method, Seats | QuestionGuided) else 1
            assert kept == half_even(round(factor * method.keep, 6), sum(n.sum() for n in sizes))
        # Padding is never read.
        other = jax.tree.map(np.asarray, loops.run(method, loops.blank(windows), budget))
        np.testing.assert_array_equal(chosen.audio_keep, other.audio_keep)
        np.testing.assert_array_equal(chosen.video_keep, other.video_keep)
        for tokens, same, keep in (
            (chosen.audio, other.audio, chosen.audio_keep),
            (chosen.video, other.video, chosen.video_keep),
        ):
            if tokens is not None:
                assert np.isfinite(tokens[keep]).all()
                np.testing.assert_array_equal(tokens[keep], same[keep])
    assert loops.select_program._cache_size() <= programs + 1  # one trace, whatever the content


@pytest.mark.parametrize("name", EVERY)
def test_nothing_has_64_bits_under_x64(name):
    method, windows = EVERY[name], clip(0)
    with jax.enable_x64(True):
        outputs = [
            jax.eval_shape(method.select, windows, method.plan(*loops.sizes(windows)), loops.KEY)
        ]
        if method.streams:  # a scan: the state has the same types after every window
            outputs.append(jax.eval_shape(method.follow, windows, loops.KEY))
    assert all(leaf.dtype.itemsize < 8 for leaf in jax.tree.leaves(outputs))


OUTSIDE = Seats(before_only=True)  # its other stages need a question


@pytest.mark.parametrize(
    "method",
    [
        VisionZip(per_window=True),
        OUTSIDE,
        Seats(keep=0.3, before_only=True),
        RandomTokens(keep=0.3),
    ],
    ids=repr,
)
@pytest.mark.slow
def test_methods_that_select_in_windows_can_follow_a_stream(method):
    for seed in (0, 1):
        windows = clip(seed)
        chosen = stream(method, windows)
        kept = chosen.audio_keep.sum(-1) + chosen.video_keep.sum((1, 2))
        sizes = loops.sizes(windows)
        assert kept.max() <= method.step_bound(20, 32)
        if method.keep is not None:
            expected = [half_even(method.keep, n) for n in np.cumsum(sizes[0] + sizes[1])]
            assert np.cumsum(kept).tolist() == expected
        elif isinstance(method, Seats):  # windows do not see each other
            np.testing.assert_array_equal(chosen.video_keep, select(method, windows).video_keep)


@pytest.mark.parametrize(
    "method", [VisionZip(), EVS(), VidCom2(), DyCoke(), TemporalOnly()], ids=repr
)
def test_methods_that_need_the_whole_clip_say_so(method):
    with pytest.raises(ValueError, match="needs the whole clip"):
        method.begin(jax.tree.map(lambda x: x[0], clip(0)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [np.float32, jax.numpy.bfloat16])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "all"])
def test_the_memory_of_128_windows(name, kind):
    """Next to its input and output no method needs half the size of the video."""

    def array(*shape, dtype=kind):
        return jax.ShapeDtypeStruct((128, *shape), dtype)

    windows = EncodedWindow(
        audio=AudioFeatures(
            tokens=array(50, 1024),
            token_mask=array(50, dtype=bool),
            queries=array(100, 4, 16),
            keys=array(100, 4, 16),
            frame_mask=array(100, dtype=bool),
        ),
        video=array(2, 144, 1024),
        video_mask=array(2, 144, dtype=bool),
        vision=VisionFeatures(array(2, 144), array(2, 144, 16)),
    )
    method = METHODS[name]()
    budget = method.plan(np.full(128, 50), np.full(128, 288))
    memory = jax.jit(method.select).lower(windows, budget, loops.KEY).compile().memory_analysis()
    assert memory.temp_size_in_bytes < windows.video.size * windows.video.dtype.itemsize / 2
