"""Released Qwen2.5-Omni weights to a Flax checkpoint, a few parameters in memory at a time.

The released files are read without torch. What answers in text (the thinker) is converted; the
speech parts (talker, token2wav) are counted and left out.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import logging
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import flax.traverse_util
import numpy as np
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm

from omnizip_jax.checkpoint.atomic_directory import unfinished
from omnizip_jax.checkpoint.checksums import array_checksum, digest, write_checksums
from omnizip_jax.checkpoint.folder import (
    CONFIG,
    FINGERPRINT,
    TOKENIZER,
    WEIGHTS,
    check_tokenizer,
    load_tokenizer,
    weights_dtype,
)
from omnizip_jax.checkpoint.released import (
    ConversionError,
    Tensor,
    check_tensors,
    find_tensors,
    leaf_dtype,
    listing,
    settle_tie,
)
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.parameters import Leaf, released_leaves

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
BATCH_BYTES = 2**28  # built and written at once, unless a single parameter is larger
SPARE_BYTES = 2**26  # on disk, beside the weights

Plan = list[tuple[Leaf, np.dtype]]  # what to write, and in which type


def convert(source: str | Path, target: str | Path, dtype: str | None = None) -> str:
    """Convert a released checkpoint into a self-contained folder for ``omnizip_jax.load``.

    Peak memory is that of the largest stacked parameter and one slice of a shard.
    The target appears under its name when all is written; until then its files lie in
    ``TARGET.unfinished`` beside it, which no other conversion touches meanwhile. The source is
    only read.

    Args:
        source: folder with the released ``config.json``, tokenizer and safetensors.
        target: folder to create.
        dtype: "bfloat16" or "float32"; None keeps what is stored.

    Returns:
        What was written and what was left out, in words.

    Raises:
        ConversionError: bad source or target, disk full, another conversion to the same target.
        ValueError: another dtype.
    """
    source, target = (Path(path).expanduser().resolve() for path in (source, target))
    conversion = Conversion.of(source, dtype)
    if target.is_relative_to(source):
        raise ConversionError(f"{target}: lies inside the source, which stays as it is")
    _check_free(target)
    with unfinished(target) as folder:
        _check_free(target)  # another conversion may have ended meanwhile
        conversion.write(folder)
        folder.rename(target)
    values = sum(math.prod(leaf.shape) for leaf, _ in conversion.plan)
    used = sum(len(leaf.names) for leaf, _ in conversion.plan)
    report = [
        f"left out: {name} ({count} tensor{'s' * (count > 1)}), not needed for text"
        for name, count in conversion.left_out.items()
    ]
    report.append(
        f"{target}: {used} tensors, {values:,} parameters, {conversion.bytes / 1e9:.2f} GB. "
        f'Use it with omnizip_jax.load("{target}")'
    )
    return "\n".join(report)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A source that was found fit, and what to make of it.

    Attributes:
        config: as the source has it, its tie settled.
        tensors: where the released tensors lie.
        left_out: how many tensors are not converted, by part.
    """

    source: Path
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    plan: Plan
    left_out: collections.Counter[str]

    @classmethod
    def of(cls, source: Path, dtype: str | None = None) -> Conversion:
        """Read all but the values.

        Raises:
            ConversionError: the configuration or the tensors are unfit.
            ValueError: weights cannot be of this dtype.
        """
        wanted = None if dtype is None else weights_dtype(dtype)
        config = _read_config(source)
        tensors = find_tensors(source)
        config = settle_tie(config, tensors)
        leaves = released_leaves(config)
        left_out = check_tensors(leaves, tensors)
        plan = [(leaf, wanted or leaf_dtype(leaf, tensors)) for leaf in leaves]
        return cls(source, config, tensors, plan, left_out)

    @property
    def bytes(self) -> int:
        return sum(_bytes(*entry) for entry in self.plan)

    def write(self, folder: Path) -> None:
        """Write the checkpoint into an empty folder.

        Raises:
            ConversionError: tokenizer or template are unfit, weights are not finite, writing fails.
        """
        _check_space(folder, self.bytes)
        _copy_files(self.source, folder, self.config)
        fingerprint = _write_weights(folder / WEIGHTS, self.plan, self.tensors)
        (folder / FINGERPRINT).write_text(fingerprint)
        write_checksums(folder)


def _read_config(source: Path) -> ModelConfig:
    if not source.is_dir():
        raise ConversionError(f"{source}: not a folder; give the folder of the released files")
    if not (source / CONFIG).is_file():
        raise ConversionError(
            f"{source}: no {CONFIG}; give the folder of the released Qwen2.5-Omni files"
        )
    try:
        return ModelConfig.from_file(source / CONFIG)
    except ValueError as error:
        raise ConversionError(str(error)) from error


def _check_free(target: Path) -> None:
    if target.exists():
        raise ConversionError(f"{target}: exists already; choose another target or remove it")


def _check_space(folder: Path, remaining: int) -> None:
    needed, free = remaining + SPARE_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise ConversionError(
            f"{folder}: disk full; {needed / 1e9:.2f} GB are still needed, "
            f"{free / 1e9:.2f} GB are free"
        )


def _copy_files(source: Path, folder: Path, config: ModelConfig) -> None:
    """Everything but the weights; made sure to be fit before the long part begins."""
    for name in (CONFIG, "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    # Beside the configuration transformers would read it too, and complain of its speech parts.
    (folder / TOKENIZER).mkdir()
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / TOKENIZER / name)
    try:
        check_tokenizer(load_tokenizer(folder / TOKENIZER), config)
    except ValueError as error:
        reason = str(error).removeprefix(f"{folder / TOKENIZER}: ")
        raise ConversionError(f"{source}: {reason}") from error


def _write_weights(path: Path, plan: Plan, tensors: Mapping[str, Tensor]) -> str:
    """Build, write and free one batch of leaves after the other; returns their fingerprint."""
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False  # the arrays are ours and do not change
    context.array.saving.use_compression = False  # weights hardly shrink, and it takes long
    remaining = sum(_bytes(*entry) for entry in plan)
    checksums = []
    with context, tqdm(total=remaining, unit="B", unit_scale=True, desc="converting") as bar:
        for batch in _batches(plan):
            _check_space(path.parent, remaining)  # others may fill the disk meanwhile
            arrays = {leaf.path: _build(leaf, dtype, tensors, bar) for leaf, dtype in batch}
            checksums += [
                f"{'/'.join(name)} {array.dtype} {array.shape} {array_checksum(array)}"
                for name, array in arrays.items()
            ]
            _attempt(ocp.partial.save, path, flax.traverse_util.unflatten_dict(arrays))
            remaining -= sum(array.nbytes for array in arrays.values())
            del arrays  # before the next are built
        _attempt(ocp.partial.finalize, path)
    return digest(sorted(checksums))


def _attempt(write: Callable[..., None], path: Path, *arguments) -> None:
    try:
        write(path, *arguments)
    except Exception as error:
        # What the operating system refuses comes as itself, or inside a message of TensorStore's.
        if not isinstance(error, OSError) and "os_error_code" not in str(error):
            raise
        raise ConversionError(f"{path}: writing failed: {error}") from error


def _batches(plan: Plan) -> Iterator[Plan]:
    """Leaves in order, cut where a batch would exceed the largest leaf or ``BATCH_BYTES``."""
    limit = min(BATCH_BYTES, max(_bytes(*entry) for entry in plan))
    batch: Plan = []
    size = 0
    for leaf, dtype in plan:
        extra = _bytes(leaf, dtype)
        if batch and size + extra > limit:
            yield batch
            batch, size = [], 0
        batch.append((leaf, dtype))
        size += extra
    yield batch


def _bytes(leaf: Leaf, dtype: np.dtype) -> int:
    return math.prod(leaf.shape) * dtype.itemsize


def _build(leaf: Leaf, dtype: np.dtype, tensors: Mapping[str, Tensor], bar: tqdm) -> np.ndarray:
    """One parameter from its released tensors.

    Raises:
        ConversionError: names those that hold a value that is not finite, in ``dtype``.
    """
    array = np.empty(leaf.shape, dtype)
    spoilt = []
    for name, part in leaf.views(array):
        count = 0
        for rows, values in tensors[name].slices():
            with np.errstate(over="ignore"):  # counted instead
                part[rows] = values.reshape(part[rows].shape)
            count += _count_not_finite(part[rows])
        if count:
            spoilt.append(f"{name}: {count} of {part.size} values")
        bar.update(part.nbytes)
    if spoilt:
        raise ConversionError(listing(f"weights that are not finite in {dtype}", spoilt))
    return array


def _count_not_finite(array: np.ndarray) -> int:
    """How many values are infinite or no number: those whose exponent is all ones."""
    bits = np.dtype(f"u{array.itemsize}")
    exponent = np.array(np.inf, array.dtype).view(bits)
    return int(np.count_nonzero(array.view(bits) & exponent == exponent))


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """The command line of the conversion; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Convert released Qwen2.5-Omni weights (3B or 7B) to a Flax checkpoint.",
    )
    parser.add_argument("source", type=Path, help="folder of the released files")
    parser.add_argument("target", type=Path, help="folder to create")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="type of the converted weights (default: as stored, bfloat16 in the released files)",
    )
    arguments = parser.parse_args(argv)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs what it also raises
    try:
        print(convert(arguments.source, arguments.target, arguments.dtype))
    except (ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was kept", file=sys.stderr)
        return 130
    return 0
