"""The prompt's two halves, their positions, and what may not be asked."""

from __future__ import annotations

import numpy as np
import pytest

from omnizip_jax import prompt


def text(params, ids):
    return params.tokenizer.decode(ids)


def test_sound_in_video_is_wrapped_as_released(params):
    built = prompt.build(params.tokenizer, params.config, "Why?", audio=True, video=True)
    assert text(params, built.prefix) == (
        f"<|im_start|>system\n{prompt.DEFAULT_SYSTEM}<|im_end|>\n"
        "<|im_start|>user\n<|vision_bos|><|audio_bos|>"
    )
    assert text(params, built.suffix) == (
        "<|audio_eos|><|vision_eos|>Why?<|im_end|>\n<|im_start|>assistant\n"
    )
    # The two start tokens share a position, and so do the two end tokens.
    assert (
        list(built.prefix_positions[-3:]) == [len(built.prefix) - 3] + [len(built.prefix) - 2] * 2
    )
    assert list(built.suffix_positions[:4]) == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("audio", "video", "start"), [(False, True, "<|vision_bos|>"), (True, False, "<|audio_bos|>")]
)
def test_one_modality(params, audio, video, start):
    built = prompt.build(params.tokenizer, params.config, "Why?", audio=audio, video=video)
    assert text(params, built.prefix).endswith(f"<|im_start|>user\n{start}")
    np.testing.assert_array_equal(built.prefix_positions, np.arange(len(built.prefix)))
    np.testing.assert_array_equal(built.suffix_positions, np.arange(len(built.suffix)))


def test_system_prompt(params):
    built = prompt.build(
        params.tokenizer, params.config, "Why?", audio=False, video=False, system="Be brief."
    )
    assert text(params, built.suffix).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert len(built.prefix) == 0


@pytest.mark.parametrize("question", ["", "   ", None, 3])
def test_a_question_is_needed(params, question):
    with pytest.raises(ValueError, match="question must be a text"):
        prompt.build(params.tokenizer, params.config, question, audio=True, video=True)


def test_bytes_that_are_no_text_are_refused(params):
    """Python reads them as lone surrogates, which a tokenizer does not take."""
    for words in ({"question": "Wh\udcff?"}, {"question": "Why?", "system": "\ud800"}):
        with pytest.raises(ValueError, match="not Unicode text"):
            prompt.build(params.tokenizer, params.config, **words, audio=True, video=True)


def test_placeholders_in_the_question_are_refused(params):
    with pytest.raises(ValueError, match="found 2"):
        prompt.build(params.tokenizer, params.config, "<|VIDEO|>?", audio=True, video=True)
