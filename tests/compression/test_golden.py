"""The published rule against recordings of the authors' code."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from omnizip_jax.compression import OmniZipConfig
from omnizip_jax.compression import omnizip_official as published
from omnizip_jax.compression.omnizip_audio import attention_scores
from omnizip_jax.compression.omnizip_video import novelty
from omnizip_jax.types import WindowTokens
from tests.compression.clips import compress

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["w1", "w2", "w3", "w8", "w8_g0", "w8_g15", "w64", "w3_d128"]
CASES += ["short_tail", "uneven_runs", "no_audio", "no_video"]
CASES += ["audio_longer", "video_longer", "not_interleaved"]  # runs longer than a window


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def into_windows(rows, runs, count, slots, padding):
    """Rows of each run at the front of a window, and the mask."""
    out = np.full((count, slots, *rows.shape[1:]), padding, rows.dtype)
    mask = np.zeros((count, slots), bool)
    for i, (start, end) in enumerate(runs):
        out[i, : end - start] = rows[start:end]
        mask[i, : end - start] = True
    return out, mask


def cut(run, most, size):
    """A run of at most ``most`` rows as it is, a longer one in windows of ``size``; they touch."""
    start, end = (int(x) for x in run)
    size = max(end - start, 1) if end - start <= most else size
    return [(i, min(i + size, end)) for i in range(start, end, size)]


def lay_out(case, grid):
    """Rows of the audio and of the video in each window, so that they touch as in the prompt."""
    audio, video, at = {}, {}, 0
    runs = itertools.zip_longest(case["audio_runs"], case["video_runs"], fillvalue=(0, 0))
    for heard, seen in runs:
        seen, heard = cut(seen, 3 * grid, 2 * grid), cut(heard, 50, 50)
        video |= {at + i: piece for i, piece in enumerate(seen)}
        at += len(seen) - bool(seen and heard)  # the last window of a run of video has sound too
        audio |= {at + i: piece for i, piece in enumerate(heard)}
        at += len(heard)
    return [[pieces.get(w, (0, 0)) for w in range(at)] for pieces in (audio, video)]


def windows(case):
    """The recorded prompt as masked windows.

    All but the longest clip are laid out alike, in 8 windows of 3 x 144 slots and 128 features, so
    that they share compiled programs; zero features change no cosine.
    """
    grid = int(np.prod(case["video_grid_thw"][0, 1:])) // 4
    audio_runs, video_runs = lay_out(case, grid)
    is_long = len(video_runs) > 8
    count, grids, slots, width = (64, 2, grid, 20) if is_long else (8, 3, 144, 128)

    rows = np.pad(case["input_embeds"], [(0, 0), (0, width - case["input_embeds"].shape[1])])
    is_audio = case["input_ids"] == case["audio_token_id"]
    is_video = case["input_ids"] == case["video_token_id"]
    audio, audio_mask = into_windows(rows[is_audio], audio_runs, count, 50, 7)
    scores, _ = into_windows(case["audio_scores"], audio_runs, count, 50, 9)
    video, video_mask = into_windows(rows[is_video], video_runs, count, grids * grid, 7)
    video = video.reshape(count, grids, grid, width)
    video_mask = video_mask.reshape(count, grids, grid)
    return WindowTokens(
        audio=audio,
        audio_scores=scores,
        audio_mask=audio_mask,
        video=np.pad(video, [(0, 0), (0, 0), (0, slots - grid), (0, 0)], constant_values=7),
        video_mask=np.pad(video_mask, [(0, 0), (0, 0), (0, slots - grid)]),
    )


@pytest.mark.parametrize(
    "name",
    [pytest.param(c, marks=pytest.mark.slow) if c in ("w64", "w8_g15") else c for c in CASES],
)
def test_published_rule_reproduces_the_recording(name):
    case = load(f"case_{name}")
    config = OmniZipConfig.published(
        rho_audio=float(case["rho_audio"]),
        rho_video=float(case["rho_video"]),
        rho_min=float(case["rho_min"]),
        rho_max=float(case["rho_max"]),
        merge_size=int(case["g"]),
        anchor_ratio=float(case["contextual_ratio"]),
        knn=int(case["knn_k"]),
    )
    tokens = windows(case)
    clip = compress(tokens, config)

    is_audio = case["input_ids"] == case["audio_token_id"]
    is_video = case["input_ids"] == case["video_token_id"]
    dominant = case["audio_dominant"]
    anchors = np.zeros_like(dominant)
    anchors[case["anchor_index"]] = True
    salient = np.asarray(clip.audio_salient)
    np.testing.assert_array_equal(salient[tokens.audio_mask], dominant)
    np.testing.assert_array_equal(
        (np.asarray(clip.audio_keep) & ~salient)[tokens.audio_mask], anchors & ~dominant
    )
    np.testing.assert_array_equal(
        np.asarray(clip.video_keep)[tokens.video_mask], case["keep_mask"][is_video]
    )
    assert not np.any(clip.audio_keep & ~tokens.audio_mask)
    assert not np.any(clip.video_keep & ~tokens.video_mask)

    expected = case["input_embeds"].copy()
    expected[case["merged_row_index"]] = case["merged_rows"]
    np.testing.assert_allclose(
        np.asarray(clip.audio)[tokens.audio_mask][:, : expected.shape[1]],
        expected[is_audio],
        atol=1e-4,
    )

    runs = len(case["ratio_final"])
    audio_runs = case["audio_runs"].reshape(-1, 2)[:runs]
    kept = np.asarray(clip.audio_keep)[tokens.audio_mask]
    retention = np.zeros(runs)
    retention[: len(audio_runs)] = [kept[start:end].mean() for start, end in audio_runs]
    guided = int(case["num_guided"])
    np.testing.assert_allclose(retention[:guided], case["audio_retention"], atol=1e-6)
    if runs:
        heard = np.zeros(runs, int)
        heard[: len(audio_runs)] = np.diff(audio_runs)[:, 0]
        seen = np.diff(case["video_runs"])[:, 0]
        rates = published.video_rates(retention, heard, seen, config)
        np.testing.assert_allclose(rates, case["ratio_final"], atol=1e-4)
        discarded = seen.sum() - np.sum(clip.video_keep)
        assert discarded == case["budget_actual_discard"]


@pytest.mark.parametrize("name", ["w1", "w3_d128"])
def test_scores_of_the_first_grids(name):
    case = load(f"case_{name}")
    tokens = windows(case)
    video, mask = tokens.video[0], tokens.video_mask[0]
    score = np.exp(published.dpc_knn(video[0], mask[0], int(case["knn_k"])))
    np.testing.assert_allclose(score[mask[0]], case["dpc_score"], atol=1e-4)
    similarity = -novelty(video[1], video[0], mask[0])
    np.testing.assert_allclose(similarity[mask[1]], case["temporal_similarity"], atol=1e-4)


@pytest.mark.parametrize("slots", [53, 20])  # one window, three windows
def test_audio_scores(slots):
    case = load("audio_score_a")
    frames = len(case["last_layer_q"])
    runs = [(i, min(i + slots, frames)) for i in range(0, frames, slots)]
    queries, mask = into_windows(case["last_layer_q"], runs, len(runs), slots, 5)
    keys, _ = into_windows(case["last_layer_k"], runs, len(runs), slots, 5)
    score = jax.jit(attention_scores, static_argnums=3)
    scores = np.asarray(score(queries, keys, mask, slots // 2)).ravel()
    tokens = len(case["token_scores"])
    np.testing.assert_allclose(scores[:tokens], case["token_scores"], atol=1e-7)
    assert not np.any(scores[tokens:])
