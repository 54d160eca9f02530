"""The published rule where audio and video differ in length, run by run."""

import jax
import numpy as np
import pytest

from omnizip_jax.compression import OmniZipConfig
from omnizip_jax.compression.omnizip_official import runs
from omnizip_jax.media import load_clip
from omnizip_jax.types import AudioFeatures, EncodedWindow
from omnizip_jax.window_spec import WindowSpec
from tests.compression import oracle_published
from tests.compression.clips import compress, counts_of, random_clip
from tests.compression.loops import received, select
from tests.media.make import grey, tone, write

PUBLISHED = OmniZipConfig.published()
SECONDS, WINDOWS, PLACES = 8.0, 7, 12


def tokens_of(path):
    """Random features for the tokens of a file's 7 windows, with small grids."""
    clip = load_clip(path, WindowSpec()).windows
    count = len(clip.mel_length)
    tokens = random_clip(0, windows=WINDOWS, audio=50, slots=PLACES, holes=False)
    heard, seen = np.zeros(WINDOWS, int), np.zeros((WINDOWS, 2), bool)
    heard[:count] = (np.asarray(clip.mel_length) + 1) // 4  # as the audio encoder pools
    seen[:count] = clip.grid_mask
    return tokens.replace(
        audio_mask=np.arange(50) < heard[:, None],
        video_mask=np.repeat(seen[:, :, None], PLACES, axis=-1),
    )


def assert_equal_run_by_run(tokens, config=PUBLISHED):
    clip = jax.tree.map(np.asarray, compress(tokens, config))
    expected = oracle_published.compress(tokens, config)
    for name, found in (("audio", clip.audio_keep), ("video", clip.video_keep)):
        for number, run in enumerate(expected[f"{name}_runs"]):
            where = tuple(np.array(run).T)
            wanted = expected[f"{name}_keep"][where]
            np.testing.assert_array_equal(found[where], wanted, err_msg=f"{name} run {number}")
        np.testing.assert_array_equal(found, expected[f"{name}_keep"])
    mask = tokens.audio_mask
    np.testing.assert_allclose(clip.audio[mask], expected["audio"][mask], atol=1e-5)
    assert clip.audio_keep.sum() + clip.video_keep.sum() <= config.plan(*counts_of(tokens)).total
    return expected


# Runs of audio and of video, and guided ones: what is left of the sound joins its last run; what
# is left of the picture is a run of its own, unless the sound ends inside the same window.
@pytest.mark.parametrize(
    ("longer", "shape"),
    [(0.03, (4, 4)), (1.0, (4, 4)), (5.0, (4, 4)), (-0.03, (4, 4)), (-1.0, (4, 4)), (-5.0, (2, 3))],
)
@pytest.mark.slow
def test_clips_whose_audio_is_longer_than_the_video_or_shorter(tmp_path, longer, shape):
    frames = grey([50] * round(SECONDS * 10), height=28, width=28)
    path = write(tmp_path / "a.mkv", frames, fps=10, sound=tone(SECONDS + longer))
    expected = assert_equal_run_by_run(tokens_of(path))
    assert (len(expected["audio_runs"]), len(expected["video_runs"])) == shape
    if longer > 0:  # 25 tokens a second more than a window's 50, in the last run
        assert len(expected["audio_runs"][-1]) == 50 + int(25 * longer + 0.5)
    if longer == -5.0:
        assert expected["rates"][2] == PUBLISHED.rho_video
        assert len(expected["video_runs"][2]) == 4 * PLACES  # two windows in one run


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.slow
def test_clips_with_holes(seed):
    tokens = random_clip(seed, windows=7, grids=3, slots=12)
    assert_equal_run_by_run(tokens)
    assert_equal_run_by_run(tokens, OmniZipConfig.published(rho_audio=0.5, merge_size=15))


def alternating(seed, windows=6, block=4):
    """A clip whose grids and audio alternate, with one frame per token, and its tokens."""
    tokens = random_clip(seed, windows=windows, audio=26, slots=12)
    rng = np.random.default_rng(seed)
    queries, keys = 2 * rng.standard_normal((2, windows, 26, 2, 8)).astype(np.float32)
    mask = tokens.audio_mask
    audio = AudioFeatures(tokens.audio, mask, queries, keys, frame_mask=mask)
    scores = np.zeros(mask.shape, np.float32)
    for start in range(0, windows, block):
        some = slice(start, start + block)
        here = mask[some]
        scores[some][here] = received(queries[some][here], keys[some][here])
    tokens = tokens.replace(audio_scores=scores)
    video = tokens.video, tokens.video_mask
    return EncodedWindow(audio, *video, runs=2, score_windows=block), tokens


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_grids_that_alternate_with_audio(seed):
    """As in Qwen3-Omni: runs of one grid, and a softmax inside the encoder's blocks."""
    windows, tokens = alternating(seed)
    config = OmniZipConfig.published(rho_audio=0.4, rho_video=0.7, merge_size=2)
    found = jax.tree.map(np.asarray, select(config, windows))
    expected = oracle_published.compress(tokens, config, by_time=True)
    assert len(expected["video_runs"]) > len(tokens.video)
    np.testing.assert_array_equal(found.audio_keep, expected["audio_keep"])
    np.testing.assert_array_equal(found.video_keep, expected["video_keep"])
    mask = tokens.audio_mask
    np.testing.assert_allclose(found.audio[mask], expected["audio"][mask], atol=1e-5)


def test_runs_of_windows():
    of_audio, of_video = runs(np.array([5, 0, 5, 5, 5]), np.array([9, 9, 9, 0, 0]))
    assert of_audio.tolist() == [0, 0, 1, 1, 1] and of_video.tolist() == [0, 1, 1, 1, 1]
