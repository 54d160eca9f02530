"""``generate``: files and arrays to answers, what it reports, and what it refuses."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import omnizip_jax
from omnizip_jax import OmniZipConfig, WindowSpec
from omnizip_jax.inference.decode import SamplingParams, new_text, sample
from omnizip_jax.inference.generation import TokenCounts
from omnizip_jax.inference.prefill import prefill_clip
from omnizip_jax.inference.sequence import fine_bucket

SPEC = WindowSpec(grid_slots=16)
QUESTION = "What happens?"


@pytest.fixture(scope="module")
def arrays():
    """5 s of noise at 4 fps, and a waveform."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    return frames, 4.0, rng.standard_normal(5 * 16000).astype(np.float32) * 0.1, 16000


def ask(params, video, **settings):
    settings = {"spec": SPEC, "max_new_tokens": 6, **settings}
    return omnizip_jax.generate(params, video, QUESTION, **settings)


def test_compression_is_reported(params, arrays):
    answer = ask(params, arrays)
    counts, trace = answer.counts, answer.compression
    assert str(answer) == answer.text
    assert counts.audio == 125 and counts.video == 5 * 12
    assert counts.audio_kept == round(0.7 * 125) + 2 + 2 + 1  # salient; anchors of 50, 50, 25
    assert counts.video_kept == counts.video - round(0.6 * counts.video)
    assert counts.kept == trace.audio_keep.sum() + trace.video_keep.sum()
    assert trace.audio_retention.shape == trace.video_rate.shape == (3,)
    assert set(answer.seconds) == {"media", "encoders", "prefill", "generation"}
    assert counts.generated == 6 or answer.token_ids[-1] in params.end_tokens
    assert params.tokenizer.decode(answer.token_ids, skip_special_tokens=True) == answer.text
    assert counts.retained == pytest.approx((93 + 24) / (125 + 60))


@pytest.mark.slow  # two more methods
def test_full_tokens_equal_a_compression_that_drops_nothing(params, arrays):
    nothing = OmniZipConfig(rho_audio=0, rho_video=0, rho_min=0, merge_size=0)
    full = ask(params, arrays, compression=None)
    assert full.token_ids == ask(params, arrays, compression=nothing).token_ids
    assert full.counts.retained == 1


@pytest.mark.slow
def test_file_and_its_options(params, tmp_path):
    from benchmarks.bouncing_clip import write_clip

    clip = write_clip(tmp_path / "clip.mp4", seconds=3, size=(64, 48))
    answer = ask(params, clip, compression=OmniZipConfig.published())
    assert answer.clip.has_audio and answer.clip.has_video
    assert ask(params, clip, use_audio=False).counts.audio == 0
    assert ask(params, str(clip), use_video=False).counts.video == 0
    assert ask(params, clip, max_frames=2).counts.video == 12


def test_text_alone(params):
    answer = ask(params, None)
    assert answer.compression is None and answer.clip is None and answer.counts.media == 0
    assert answer.counts.retained == 1


def test_pieces_make_the_text(params, arrays):
    pieces = []
    answer = ask(params, arrays, on_text=pieces.append, max_new_tokens=20)
    assert "".join(pieces) == answer.text
    assert len(pieces) > 1 or answer.counts.generated <= 8


def test_characters_are_never_cut(params):
    text, pieces, said = "naïve 東京", [], ""
    ids = params.tokenizer(text)["input_ids"]
    for count in range(1, len(ids) + 1):
        now = new_text(params.tokenizer, ids[:count], said, finished=False)
        pieces.append(now[len(said) :])
        said = now
    assert new_text(params.tokenizer, ids, said, finished=True) == text
    assert "".join(pieces) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    # A half character at the very end is said after all: nothing more will come.
    assert "\N{REPLACEMENT CHARACTER}" in new_text(params.tokenizer, ids[:-1], "", finished=True)


def test_sampling_follows_the_seed(params, arrays):
    def drawn(seed):
        return ask(params, arrays, temperature=1.5, seed=seed, max_new_tokens=16).token_ids

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)}) > 1
    greedy = ask(params, arrays, max_new_tokens=16).token_ids
    assert ask(params, arrays, temperature=1.0, top_p=1e-6, max_new_tokens=16).token_ids == greedy


def test_top_p_keeps_the_smallest_set_that_holds_the_mass():
    logits = jnp.log(jnp.array([0.1, 0.5, 0.15, 0.25]))
    for top_p, allowed in ((0.4, {1}), (0.6, {1, 3}), (0.8, {1, 2, 3}), (1.0, {0, 1, 2, 3})):
        settings = SamplingParams(temperature=1, top_p=top_p).sampling
        keys = jax.random.split(jax.random.key(0), 300)
        drawn = jax.vmap(lambda key, s=settings: sample(logits, s, key))(keys)
        assert set(drawn.tolist()) == allowed


def test_clips_of_one_bucket_share_a_program(params, arrays):
    frames, fps, sound, rate = arrays
    ask(params, arrays)
    programs = prefill_clip._cache_size()
    other = (frames[:-1, ::-1], fps, sound[::-1].copy(), rate)
    ask(params, other)
    assert prefill_clip._cache_size() == programs


def test_counts_name_a_modality_without_tokens():
    missing = {TokenCounts(a, a, v, v, 9, 1).missing for a, v in ((0, 0), (5, 5))}
    assert missing == {()}
    assert TokenCounts(0, 0, 5, 3, 9, 1).missing == ("audio",)
    assert TokenCounts(5, 3, 0, 0, 9, 1).missing == ("video",)


def test_buckets():
    sizes = [fine_bucket(n) for n in range(1, 5000)]
    assert all(size >= n for n, size in enumerate(sizes, start=1))
    assert all(size <= max(64, n * 1.125) for n, size in enumerate(sizes, start=1))
    assert len(set(sizes)) < 60


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must be >= 0"),
        ({"top_p": 0.0}, "top_p in"),
        ({"spec": WindowSpec(seconds=4)}, "audio blocks are 2 s"),
        ({"use_audio": False, "use_video": False}, "use at least one of them"),
        ({"max_frames": 1}, "max_frames"),
    ],
)
def test_bad_settings(params, arrays, settings, message):
    with pytest.raises(ValueError, match=message):
        ask(params, arrays, **settings)


def test_a_clip_beyond_the_positions(params, arrays):
    short = dataclasses.replace(params.config.text, max_positions=150)
    params = dataclasses.replace(params, config=dataclasses.replace(params.config, text=short))
    with pytest.raises(ValueError, match="the model has 150"):
        ask(params, arrays)


def test_missing_file(params):
    with pytest.raises(ValueError, match=r"nowhere\.mp4"):
        ask(params, "nowhere.mp4")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho_audio": 1.2}, "rho_audio is a share"),
        ({"rho_min": 0.9}, "rho_min 0.9 exceeds"),
        ({"rho_video": 0.8}, "raise rho_max"),
        ({"rho_video": 0.2}, "lower rho_min"),
        ({"merge_size": -1}, "merge_size"),
        ({"knn": 1.5}, "knn must be int"),
        ({"merge_size": float("nan")}, "merge_size must be int"),
        ({"rho_audio": float("nan")}, "rho_audio must be float"),
        ({"rho_audio": "0.3"}, "rho_audio must be float"),
        ({"causal": 1}, "causal must be bool"),
    ],
)
def test_bad_compression(settings, message):
    with pytest.raises(ValueError, match=message):
        OmniZipConfig(**settings)


def test_bad_window_spec():
    with pytest.raises(ValueError, match=r"WindowSpec.grid_slots"):
        WindowSpec(grid_slots=0)


@pytest.mark.parametrize("function", [omnizip_jax.converse, omnizip_jax.read])
def test_an_unknown_argument_is_named_with_its_function(params, arrays, function):
    with pytest.raises(TypeError, match=rf"{function.__name__}\(\) got an unexpected .* 'fps'"):
        function(params, [arrays], fps=2)
