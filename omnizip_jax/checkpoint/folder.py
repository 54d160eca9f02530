"""The converted checkpoint on disk: what lies where, and its tokenizer.

A checkpoint is a folder that needs nothing else::

    config.json             as released
    generation_config.json  as released, if it was there
    tokenizer/              tokenizer files and chat template
    weights/                Orbax: one array per parameter, layers stacked
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG = "config.json"
TOKENIZER = "tokenizer"
WEIGHTS = "weights"
UNFINISHED = "CONVERSION_UNFINISHED"  # a file that lies in the folder until all is written


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, chat template included, without the network.

    Raises:
        ValueError: no readable tokenizer or no chat template.
    """
    from transformers import AutoTokenizer  # slow to import, and only needed here

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no readable tokenizer ({error})") from error
    legacy = path / "chat_template.json"  # older releases keep the template beside the tokenizer
    if tokenizer.chat_template is None and legacy.is_file():
        tokenizer.chat_template = json.loads(legacy.read_text())["chat_template"]
    if tokenizer.chat_template is None:
        raise ValueError(f"{path}: the tokenizer has no chat template")
    return tokenizer
