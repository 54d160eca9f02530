"""The PyTorch peers compute what the library computes."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from benchmarks import compression, methods, presets
from benchmarks.peers import omnizip_official_torch as published
from benchmarks.peers import omnizip_paper_torch as paper
from omnizip_jax.compression import METHODS, OmniZipConfig
from omnizip_jax.compression.omnizip_audio import attention_scores

pytestmark = pytest.mark.slow  # comparisons with PyTorch

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    "name",
    [
        "w1",
        "w2",
        "w3",
        "w8",
        "w8_g0",
        "w8_g15",
        "w64",
        "w3_d128",
        "short_tail",
        "uneven_runs",
        "no_audio",
        "no_video",
    ],
)
def test_published_steps_reproduce_the_recording(name):
    with np.load(GOLDEN / f"case_{name}.npz") as file:
        case = dict(file)
    config = OmniZipConfig.published(
        rho_audio=float(case["rho_audio"]),
        rho_video=float(case["rho_video"]),
        merge_size=int(case["g"]),
        anchor_ratio=float(case["contextual_ratio"]),
        knn=int(case["knn_k"]),
    )
    keep, merged = published.compress(
        torch.tensor(case["input_embeds"]),
        torch.tensor(case["input_ids"]),
        torch.tensor(case["audio_scores"]),
        int(np.prod(case["video_grid_thw"][0, 1:])) // 4,
        int(case["audio_token_id"]),
        int(case["video_token_id"]),
        config,
    )
    np.testing.assert_array_equal(keep.numpy(), case["keep_mask"])
    expected = case["input_embeds"].copy()
    expected[case["merged_row_index"]] = case["merged_rows"]
    np.testing.assert_allclose(merged.numpy(), expected, atol=1e-5)


def test_batched_paper_rule_is_ours():
    config = OmniZipConfig.paper()
    tokens = compression.random_tokens(6, 64, np.float32, 36)
    ours = compression.program(config, tokens)(tokens)
    arrays = (tokens.audio, tokens.audio_scores, tokens.video)
    audio, keep_audio, keep_video = paper.compress(*map(compression.to_torch, arrays), config)
    np.testing.assert_array_equal(keep_audio.numpy(), ours.audio_keep)
    np.testing.assert_array_equal(keep_video.numpy(), ours.video_keep)
    np.testing.assert_allclose(audio.numpy(), ours.audio, atol=1e-5)


def test_published_steps_are_ours_on_the_benchmarks_clip():
    config = OmniZipConfig.published()
    tokens = compression.random_tokens(5, 64, np.float32, 36)
    ours = compression.program(config, tokens)(tokens)
    keep, _ = compression.loop_call(tokens, config)()
    both = np.concatenate([np.reshape(ours.video_keep, (5, -1)), ours.audio_keep], axis=1)
    np.testing.assert_array_equal(keep.numpy(), both.ravel())


def test_scores_are_ours():
    queries, keys = (jax.random.normal(jax.random.key(i), (3, 8, 2, 4)) for i in range(2))
    ours = attention_scores(queries, keys, np.ones((3, 8), bool), 4)
    flat = [compression.to_torch(x).flatten(0, 1).transpose(0, 1) for x in (queries, keys)]
    np.testing.assert_allclose(paper.scores(*flat, block=5).numpy(), ours.ravel(), atol=1e-6)


def selections(name):
    """The library's and the peer's selection on the benchmark's clip, by grid or by window."""
    config = presets.PRESETS["tiny"].model
    windows = methods.random_encoded(6, 64, config, np.float32)
    ours = methods.program(METHODS[name](), windows)(windows)
    return ours, methods.peer_calls(windows)[name]()


def test_evs_and_visionzip_are_ours():
    ours, keep = selections("evs")
    np.testing.assert_array_equal(keep.numpy(), ours.video_keep.reshape(keep.shape))
    ours, (keep, video) = selections("visionzip")
    np.testing.assert_array_equal(keep.numpy(), ours.video_keep.ravel())
    np.testing.assert_allclose(video.numpy(), ours.video.reshape(video.shape), atol=1e-5)


def test_seats_is_ours():
    ours, (audio, video) = selections("seats")
    np.testing.assert_array_equal(audio.numpy(), ours.audio_keep)
    np.testing.assert_array_equal(video.numpy(), ours.video_keep.reshape(video.shape))


def test_dycoke_and_vidcom2_differ_from_ours_in_rounding_alone():
    """Rounding of the counts of grids differs; the order in which tokens are kept is the same."""

    def nested(ours, theirs, apart):
        ours = np.asarray(ours).reshape(len(theirs), -1)
        counts, peers = ours.sum(1), theirs.sum(1)
        smaller = np.where((counts < peers)[:, None], ours, theirs)
        np.testing.assert_array_equal(smaller, ours & theirs)
        assert np.abs(counts - peers).max() <= apart

    ours, keep = selections("vidcom2")
    nested(ours.video_keep, keep.numpy(), 2)
    ours, (audio, video) = selections("dycoke")
    nested(ours.video_keep, video[0].numpy(), 12)  # a whole frame more, of twelve
    audio_keep = np.pad(np.asarray(ours.audio_keep), ((0, 0), (0, 10))).reshape(6, 5, 12)
    nested(audio_keep[:, :4].reshape(24, 12), audio[:, :4].flatten(0, 1).numpy(), 1)
