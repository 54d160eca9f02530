"""The converted checkpoint on disk: what lies where, and its tokenizer.

A checkpoint is a folder that needs nothing else::

    config.json             as released
    generation_config.json  as released, if it was there
    tokenizer/              tokenizer files and chat template
    weights/                Orbax: one array per parameter, layers stacked
    fingerprint             a short digest of the parameters, whatever files they lie in
    checksums               CRC-32 of every file above; written last
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from omnizip_jax.models.qwen2_5_omni.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG = "config.json"
TOKENIZER = "tokenizer"
WEIGHTS = "weights"
FINGERPRINT = "fingerprint"
CHECKSUMS = "checksums"
UNFINISHED = "CONVERSION_UNFINISHED"  # lies beside what a conversion has not finished

DTYPES = ("bfloat16", "float32")


def weights_dtype(dtype: jax.typing.DTypeLike) -> np.dtype:
    """The type that a user wants weights in.

    Raises:
        ValueError: weights are of no use in it.
    """
    try:
        wanted = jax.numpy.dtype(dtype)
    except TypeError:
        wanted = None
    if wanted is None or wanted.name not in DTYPES:
        raise ValueError(f"dtype of the weights must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return wanted


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, chat template included, without the network.

    Raises:
        ValueError: no readable tokenizer or no chat template.
    """
    from transformers import AutoTokenizer  # slow to import, and only needed here

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        legacy = path / "chat_template.json"  # older releases keep the template beside it
        if tokenizer.chat_template is None and legacy.is_file():
            tokenizer.chat_template = json.loads(legacy.read_text())["chat_template"]
    except Exception as error:  # damaged files raise every kind, the plain one among them
        raise ValueError(f"{path}: no readable tokenizer ({_first_line(error)})") from error
    if not tokenizer.chat_template:
        raise ValueError(f"{path}: the tokenizer has no chat template")
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
    """Compare a tokenizer and its chat template with the configuration beside them.

    Raises:
        ValueError: ids beyond the vocabulary; a template that cannot be rendered, loses what was
            said, or does not put the marked placeholder where a medium belongs.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.text.vocabulary:
        raise ValueError(
            f"the tokenizer has ids up to {largest}, {CONFIG} a vocab_size of "
            f"{config.text.vocabulary}"
        )
    _check_medium(
        tokenizer,
        "video",
        (config.vision_start_token, config.video_token, config.vision_end_token),
    )
    _check_medium(
        tokenizer,
        "audio",
        (config.audio_start_token, config.audio_token, config.audio_end_token),
    )


def _check_medium(
    tokenizer: PreTrainedTokenizerBase, kind: str, markers: tuple[int, int, int]
) -> None:
    """Render a question about one medium; its placeholder must stand between its markers."""
    system, question = "Be brief.", "What happens?"
    content = [{"type": kind, kind: ""}, {"type": "text", "text": question}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": content},
    ]
    try:
        text = str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    except Exception as error:  # a template is a program of somebody else's
        raise ValueError(f"broken chat template ({_first_line(error)})") from error
    for said in (system, question):
        if said not in text:
            raise ValueError(f"broken chat template: {said!r} was said and is not in {text!r}")
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    places = [place for place, token in enumerate(ids) if token == markers[1]]
    if len(places) != 1 or tuple(ids[places[0] - 1 : places[0] + 2]) != markers:
        raise ValueError(
            f"the chat template and {CONFIG} disagree: expected the tokens {list(markers)} once in "
            f"a question about {kind}, got {ids}"
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
