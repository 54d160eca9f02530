"""The converted checkpoint on disk, and ``load``.

A checkpoint is a folder that needs nothing else::

    config.json             as released
    generation_config.json  as released, if it was there
    tokenizer/              tokenizer files and chat template
    weights/                Orbax: one array per parameter, layers stacked
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct
from orbax.checkpoint import v1 as ocp

from omnizip_jax.config import ModelConfig
from omnizip_jax.models.audio import AudioEncoder
from omnizip_jax.models.text import Decoder
from omnizip_jax.models.vision import VisionEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG = "config.json"
TOKENIZER = "tokenizer"
WEIGHTS = "weights"
UNFINISHED = "CONVERSION_UNFINISHED"  # a file that lies in the folder until all is written
ADVICE = "write one with `omnizip convert SOURCE TARGET`"


class Params(struct.PyTreeNode):
    """A loaded model: a pytree of weights, with configuration and tokenizer as static data.

    Attributes:
        weights: {"audio", "vision", "text"}, each the ``params`` of the module of that name.
    """

    weights: Any
    config: ModelConfig = struct.field(pytree_node=False)
    tokenizer: PreTrainedTokenizerBase = struct.field(pytree_node=False)


def load(path: str | Path, dtype: jax.typing.DTypeLike | None = None) -> Params:
    """Load a converted checkpoint onto the default device.

    Args:
        path: the folder that ``omnizip convert`` wrote; or ``"small"``, the small trained model
            that comes with the package and answers questions about ``omnizip_jax.testbed`` clips.
        dtype: of the weights, ``"bfloat16"`` or ``"float32"``; as converted by default.

    Raises:
        ValueError: the folder is not a finished converted checkpoint, or does not fit its
            configuration.
    """
    if path == "small":
        from omnizip_jax.small import small_checkpoint  # it writes what is read here

        path = small_checkpoint()
    path = Path(path)
    _check_folder(path)
    config = ModelConfig.from_file(path / CONFIG)
    expected = abstract_params(config)
    with _explained(path):
        stored = ocp.pytree_metadata(_absolute(path / WEIGHTS)).metadata
    _check_shapes(path, expected, stored)
    sharding = jnp.zeros(()).sharding  # of the default device
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding),
        stored,
    )
    with _explained(path):
        weights = ocp.load(_absolute(path / WEIGHTS), wanted)
    return Params(weights=weights, config=config, tokenizer=load_tokenizer(path / TOKENIZER))


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


def abstract_params(config: ModelConfig, dtype: jax.typing.DTypeLike = jnp.float32) -> Any:
    """Names, shapes and types of all parameters, without allocating any.

    The modules decide; conversion, loading and the released names all follow this tree.
    """
    key = jax.random.key(0)
    audio, vision = config.audio, config.vision
    dtype = jnp.dtype(dtype)

    def shape(*sizes: int, dtype: jax.typing.DTypeLike = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    trees = {
        "audio": jax.eval_shape(
            AudioEncoder(audio, dtype).init,
            key,
            shape(audio.mel_bins, 2 * audio.n_window, dtype=dtype),
            shape(),
        ),
        "vision": jax.eval_shape(
            VisionEncoder(vision, dtype).init,
            key,
            shape(vision.merge**2, vision.patch_values, dtype=jnp.uint8),
            shape(2),
        ),
        "text": jax.eval_shape(
            lambda key, tokens: Decoder(config.text, dtype).init(
                key, tokens, method=Decoder.init_all
            ),
            key,
            shape(1),
        ),
    }
    return {name: tree["params"] for name, tree in trees.items()}


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder. Give a converted checkpoint; {ADVICE}")
    if (path / UNFINISHED).exists():
        raise ValueError(
            f"{path}: the remains of an interrupted conversion. Delete them and run "
            "`omnizip convert SOURCE TARGET` again"
        )
    if (path / WEIGHTS).is_dir() and (path / CONFIG).is_file():
        return
    if any(path.glob("*.safetensors*")):
        raise ValueError(
            f"{path}: a checkpoint in the released layout, not yet converted. "
            f"Run `omnizip convert {path} TARGET` and load TARGET"
        )
    raise ValueError(f"{path}: not a converted checkpoint; {ADVICE}")


def _check_shapes(path: Path, expected: Any, stored: Any) -> None:
    """The arrays on disk are those that the configuration beside them asks for."""

    def flat(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(key): tuple(leaf.shape) for key, leaf in leaves}

    want, found = flat(expected), flat(stored)
    wrong = sorted(name for name in want.keys() | found.keys() if want.get(name) != found.get(name))
    if wrong:
        lines = [f"  {name}: expected {want.get(name)}, found {found.get(name)}" for name in wrong]
        raise ValueError(f"{path}: {WEIGHTS} do not fit {CONFIG}; {ADVICE}\n" + "\n".join(lines))


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say which folder is damaged; Orbax raises many kinds of errors, ``Exception`` among them."""
    try:
        yield
    except jax.errors.JaxRuntimeError:  # out of memory, no fault of the files
        raise
    except Exception as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ValueError(f"{path}: damaged weights; {ADVICE} ({reason})") from error


def _absolute(path: Path) -> str:
    return str(path.expanduser().resolve())  # Orbax refuses relative paths
