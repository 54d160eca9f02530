"""Released Qwen2.5-Omni weights to a Flax checkpoint, a few parameters in memory at a time.

The released files are read without torch. What answers in text (the thinker) is converted; the
speech parts (talker, token2wav) are counted and left out.
"""

from __future__ import annotations

import argparse
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

from omnizip_jax.checkpoint.folder import CONFIG, TOKENIZER, UNFINISHED, WEIGHTS, load_tokenizer
from omnizip_jax.checkpoint.released import (
    ConversionError,
    Tensor,
    check_tensors,
    find_tensors,
    leaf_dtype,
)
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.released import Leaf, released_leaves

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
    ``TARGET.unfinished`` beside it. The source is only read.

    Args:
        source: folder with the released ``config.json``, tokenizer and safetensors.
        target: folder to create.
        dtype: "bfloat16" or "float32"; None keeps what is stored.

    Returns:
        What was written and what was left out, in words.

    Raises:
        ConversionError: bad source or target, disk full.
    """
    source, target = (Path(path).expanduser().resolve() for path in (source, target))
    config = _read_config(source)
    _check_target(source, target)
    leaves = released_leaves(config)
    tensors = find_tensors(source)
    left_out = check_tensors(leaves, tensors)
    plan = [(leaf, np.dtype(dtype or leaf_dtype(leaf, tensors))) for leaf in leaves]
    total = sum(_bytes(*entry) for entry in plan)

    work = _make_work_folder(target, total)
    try:
        _copy_files(source, work)
        _write_weights(work / WEIGHTS, plan, tensors)
        (work / UNFINISHED).unlink()
        work.rename(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    values = sum(math.prod(leaf.shape) for leaf in leaves)
    used = sum(len(leaf.names) for leaf in leaves)
    report = [
        f"left out: {name} ({count} tensor{'s' * (count > 1)}), not needed for text"
        for name, count in left_out.items()
    ]
    report.append(
        f"{target}: {used} tensors, {values:,} parameters, {total / 1e9:.2f} GB. "
        f'Use it with omnizip_jax.load("{target}")'
    )
    return "\n".join(report)


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


def _check_target(source: Path, target: Path) -> None:
    if target.exists():
        raise ConversionError(f"{target}: exists already; choose another target or remove it")
    if target.is_relative_to(source):
        raise ConversionError(f"{target}: lies inside the source, which stays as it is")


def _make_work_folder(target: Path, total: int) -> Path:
    """An empty folder beside the target, on a disk with room for ``total`` bytes."""
    work = target.with_name(f"{target.name}.unfinished")
    if (work / UNFINISHED).is_file():
        print(f"{work}: removing the remains of an interrupted conversion", file=sys.stderr)
        shutil.rmtree(work)
    elif work.exists():
        raise ConversionError(f"{work}: in the way, and not the remains of a conversion; remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_space(target.parent, total)
    work.mkdir()
    (work / UNFINISHED).write_text("The remains of an interrupted conversion. Safe to delete.\n")
    return work


def _check_space(folder: Path, remaining: int) -> None:
    needed, free = remaining + SPARE_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise ConversionError(
            f"{folder}: disk full; {needed / 1e9:.2f} GB are still needed, "
            f"{free / 1e9:.2f} GB are free"
        )


def _copy_files(source: Path, work: Path) -> None:
    """Everything but the weights; made sure to be readable before the long part begins."""
    for name in (CONFIG, "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, work / name)
    # Beside the configuration transformers would read it too, and complain of its speech parts.
    (work / TOKENIZER).mkdir()
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, work / TOKENIZER / name)
    try:
        load_tokenizer(work / TOKENIZER)
    except ValueError as error:
        raise ConversionError(f"{source}: {str(error).partition(': ')[2]}") from error


def _write_weights(path: Path, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    """Build, write and free one batch of leaves after the other."""
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False  # the arrays are ours and do not change
    context.array.saving.use_compression = False  # weights hardly shrink, and it takes long
    remaining = sum(_bytes(*entry) for entry in plan)
    with context, tqdm(total=remaining, unit="B", unit_scale=True, desc="converting") as bar:
        for batch in _batches(plan):
            _check_space(path.parent, remaining)  # others may fill the disk meanwhile
            arrays = {leaf.path: _build(leaf, dtype, tensors, bar) for leaf, dtype in batch}
            _attempt(ocp.partial.save, path, flax.traverse_util.unflatten_dict(arrays))
            remaining -= sum(array.nbytes for array in arrays.values())
            del arrays  # before the next are built
        _attempt(ocp.partial.finalize, path)


def _attempt(write: Callable[..., None], path: Path, *arguments) -> None:
    # Orbax reports a full or failing disk as one of many exceptions.
    try:
        write(path, *arguments)
    except Exception as error:
        raise ConversionError(f"{path}: writing failed, is the disk full? {error}") from error


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
    array = np.empty(leaf.shape, dtype)
    for name, part in leaf.views(array):
        for rows, values in tensors[name].slices():
            part[rows] = values.reshape(part[rows].shape)
        bar.update(part.nbytes)
    return array


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
