"""Layout of a converted checkpoint on disk, and its tokenizer.

A checkpoint is a self-contained folder::

    config.json             as released
    generation_config.json  as released, if present
    tokenizer/              tokenizer files and chat template
    weights/                Orbax: one array per parameter, layers stacked
    fingerprint             a short digest of the parameters, whatever files they are in
    checksums               CRC-32 of every file above; written last
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from omnizip_jax.models.config import ConfigSection, integers, read_json
from omnizip_jax.models.registry import Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
TOKENIZER = "tokenizer"
WEIGHTS = "weights"
FINGERPRINT = "fingerprint"

DTYPES = ("bfloat16", "float32")
QUANTIZED = {"int8": 8, "int4": 4}  # bits of the decoder's matrices
ORIGINAL = "take the original release, such as Qwen/Qwen2.5-Omni-7B or Qwen3-Omni-30B-A3B-Instruct"


def weights_dtype(dtype: jax.typing.DTypeLike, allowed: Iterable[str] = DTYPES) -> np.dtype:
    """The numpy type of a user's ``dtype``.

    Raises:
        ValueError: weights of this type are not supported; the message has those ``allowed``.
    """
    try:
        wanted = jax.numpy.dtype(dtype)
    except TypeError:
        wanted = None
    if wanted is None or wanted.name not in DTYPES:
        advice = f"; `omnizip convert --dtype {dtype}` quantises" if dtype in [*QUANTIZED] else ""
        raise ValueError(
            f"dtype of the weights must be one of {', '.join(allowed)}, got {dtype!r}{advice}"
        )
    return wanted


def unsupported(path: Path) -> str | None:
    """A sentence with the kind of an unsupported checkpoint and the remedy; None if not known."""
    if any(_read(file, 4) == b"GGUF" for file in (path, *path.glob("*.gguf"))):
        return f"GGUF files are quantised for llama.cpp and cannot be read; {ORIGINAL}"
    if not path.is_dir():
        on_hub = len(path.parts) == 2 and not path.parent.exists()
        return f"no folder; download it: hf download {path} --local-dir FOLDER" if on_hub else None
    lfs, files = b"version https://git-lfs", (*path.iterdir(), *path.glob(f"{TOKENIZER}/*"))
    if pointers := sorted(file.name for file in files if _read(file, len(lfs)) == lfs):
        return f"Git LFS pointers in place of {', '.join(pointers)}; run `git lfs pull` in it"
    places = [path.glob(f"{above}snapshots/*/{CONFIG}") for above in ("", "*/", "hub/*/")]
    snapshots = [str(file.parent) for place in places for file in place]
    config = path / CONFIG
    if snapshots and not config.exists():
        return f"a cache of the Hugging Face Hub; give a snapshot in it: {' or '.join(snapshots)}"
    if (path / "adapter_config.json").exists() and not any(path.glob("model*.safetensors")):
        return (
            "a LoRA adapter without the model; merge it into the model with peft's "
            "merge_and_unload, save that with save_pretrained, and convert the result"
        )
    text = _read(config).decode("utf-8", "replace")
    beside = any((path / name).exists() for name in ("quantize_config.json", "quant_config.json"))
    if beside or re.search(r'"quantization(_config)?"\s*:\s*\{', text):
        method = re.search(r'"quant_method"\s*:\s*"(\w+)', text)
        return f"quantised weights ({method[1] if method else 'of an unknown kind'}); {ORIGINAL}"
    if not any(path.glob("*.safetensors*")) and (*path.glob("*.bin"), *path.glob("*.pt*")):
        return (
            "PyTorch pickles; load them with transformers and save them with save_pretrained, "
            "which writes safetensors"
        )
    return None


def _read(file: Path, size: int = -1) -> bytes:
    """The first bytes of a regular file, none where it cannot be read."""
    with contextlib.suppress(OSError):
        if file.is_file():
            with file.open("rb") as opened:
                return opened.read(size)
    return b""


def read_stop_tokens(path: Path, config: Config) -> tuple[int, ...]:
    """The ids that end an answer, ``eos_token_id`` of ``generation_config.json``; () without it.

    Raises:
        ValueError: a damaged file, or an id beyond the vocabulary.
    """
    file = path / GENERATION_CONFIG
    if not file.is_file():
        return ()
    name, last = "eos_token_id", config.text.vocabulary - 1
    try:
        section = ConfigSection(read_json(file))
        found = section.values.get(name)
        if not isinstance(found, list):
            found = [] if found is None else [found]
        return ConfigSection({name: found}).get(integers(name, last))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a folder, chat template included, without the network.

    Raises:
        ValueError: no readable tokenizer or no chat template.
    """
    from transformers import AutoTokenizer  # slow to import, and only needed here

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        legacy = path / "chat_template.json"  # of older releases
        if tokenizer.chat_template is None and legacy.is_file():
            tokenizer.chat_template = json.loads(legacy.read_text())["chat_template"]
    except Exception as error:  # damaged files raise every kind, Exception itself included
        raise ValueError(f"{path}: no readable tokenizer ({_first_line(error)})") from error
    if not tokenizer.chat_template:
        raise ValueError(f"{path}: the tokenizer has no chat template")
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
    """Compare a tokenizer and its chat template with the configuration.

    Raises:
        ValueError: ids beyond the vocabulary; a template that cannot be rendered, loses text of
            the messages, or does not place a medium's placeholder between its markers.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.text.vocabulary:
        raise ValueError(
            f"the tokenizer has ids up to {largest}, {CONFIG} a vocab_size of "
            f"{config.text.vocabulary}"
        )
    video = (config.vision_start_token, config.video_token, config.vision_end_token)
    audio = (config.audio_start_token, config.audio_token, config.audio_end_token)
    for kind, markers in (("video", video), ("audio", audio)):
        _check_placeholder(tokenizer, kind, markers)


def _check_placeholder(
    tokenizer: PreTrainedTokenizerBase, kind: str, markers: tuple[int, int, int]
) -> None:
    """Render a question about one medium and check its placeholder."""
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
    except Exception as error:  # a template is a program and raises anything
        raise ValueError(f"broken chat template ({_first_line(error)})") from error
    for part in (system, question):
        if part not in text:
            raise ValueError(f"broken chat template: {part!r} of the messages is not in {text!r}")
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    places = [place for place, token in enumerate(ids) if token == markers[1]]
    if len(places) != 1 or tuple(ids[places[0] - 1 : places[0] + 2]) != markers:
        raise ValueError(
            f"the chat template and {CONFIG} disagree: expected the tokens {list(markers)} once in "
            f"a question about {kind}, got {ids}"
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
