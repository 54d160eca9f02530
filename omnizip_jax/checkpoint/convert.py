"""Conversion of released weights to a Flax checkpoint, in bounded memory.

The released files are read without torch. The part that answers in text (the thinker) is
converted; the speech parts are counted and left out.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm

from omnizip_jax.checkpoint.atomic_directory import atomic_directory
from omnizip_jax.checkpoint.checksums import write_checksums
from omnizip_jax.checkpoint.folder import (
    CONFIG,
    DTYPES,
    FINGERPRINT,
    GENERATION_CONFIG,
    QUANTIZED,
    TOKENIZER,
    WEIGHTS,
    check_tokenizer,
    load_tokenizer,
    read_stop_tokens,
    unsupported,
    weights_dtype,
)
from omnizip_jax.checkpoint.safetensors_index import (
    ConversionError,
    ReleasedTensor,
    check_tensors,
    common_dtype,
    find_tensors,
    listing,
    resolve_tied_head,
)
from omnizip_jax.models.loaded_model import describe_array, digest
from omnizip_jax.models.parameters import ArrayInfo
from omnizip_jax.models.quantized import quantize
from omnizip_jax.models.registry import Config, family, read_config
from omnizip_jax.models.weight_mapping import array_infos

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
CHUNK_BYTES = 2**24  # of the stored arrays: a device reads the chunks of its part
SPARE_BYTES = 2**26  # on disk, beside the weights


def convert(
    source: str | Path,
    target: str | Path,
    dtype: str | None = None,
    *,
    quantize_all: bool = False,
) -> str:
    """Convert a released checkpoint into a self-contained folder for ``omnizip_jax.load``.

    Peak memory is that of the largest stacked parameter and one slice of a shard. The target
    appears under its name when it is complete; until then its files are in ``TARGET.unfinished``
    beside it, which no other conversion touches meanwhile. The source is only read.

    Args:
        source: folder with the released ``config.json``, tokenizer and safetensors.
        target: folder to create.
        dtype: "bfloat16" or "float32"; None: bfloat16 if all tensors are, otherwise float32, which
            holds the values of float16 and of mixed types exactly. "int8" or "int4": the matrices
            of the decoder's layers are quantised, everything else is as with None.
        quantize_all: quantise also the encoders, embeddings (to 8 bits both) and the logits head.

    Returns:
        A report of what was written, what was left out, and the errors of quantised parameters.

    Raises:
        ConversionError: bad source or target, disk full, another conversion to the same target.
        ValueError: another dtype; ``quantize_all`` without a quantised one.
    """
    source, target = (Path(path).expanduser().resolve() for path in (source, target))
    conversion = Conversion.of(source, dtype, quantize_all)
    if target.is_relative_to(source):
        raise ConversionError(f"{target}: is inside the source, which is only read")
    _check_absent(target)
    with atomic_directory(target) as folder:
        _check_absent(target)  # another conversion may have ended meanwhile
        errors = conversion.write(folder)
        folder.rename(target)
    values = sum(math.prod(leaf.shape) for leaf in conversion.leaves)
    used = sum(len(leaf.names) for leaf in conversion.leaves)
    report = [
        f"left out: {name} ({count} tensor{'s' * (count > 1)}), not needed for text"
        for name, count in conversion.left_out.items()
    ]
    report += _describe_errors(errors)
    size, stored = (
        f"{_bytes(conversion.leaves) / 1e9:.2f} GB",
        dtype if errors else conversion.dtype,
    )
    report.append(
        f"{target}: {used} tensors, {values:,} parameters, {size} in {stored}. "
        f'Use it with omnizip_jax.load("{target}")'
    )
    return "\n".join(report)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A checked source, and the parameters to make from it.

    Attributes:
        config: of the source; whether embeddings are tied is decided from the tensors.
        leaves: parameters to write.
        dtype: of those that are not quantised.
        left_out: number of tensors that are not converted, by part.
    """

    source: Path
    config: Config
    tensors: Mapping[str, ReleasedTensor]
    leaves: list[ArrayInfo]
    dtype: np.dtype
    left_out: collections.Counter[str]

    @classmethod
    def of(cls, source: Path, dtype: str | None = None, quantize_all: bool = False) -> Conversion:
        """Read everything but the values; raises as ``convert``."""
        bits = QUANTIZED.get(dtype) if isinstance(dtype, str) else None
        if quantize_all and bits is None:
            raise ValueError(f"quantize_all needs dtype {' or '.join(QUANTIZED)}, got {dtype!r}")
        wanted = None if dtype is None or bits else weights_dtype(dtype, (*DTYPES, *QUANTIZED))
        if reason := unsupported(source):
            raise ConversionError(f"{source}: {reason}")
        if not source.is_dir():
            raise ConversionError(f"{source}: not a folder; give the folder of the released files")
        if not (source / CONFIG).is_file():
            raise ConversionError(f"{source}: no {CONFIG}; give the folder of the released files")
        if (source / FINGERPRINT).exists():
            raise ConversionError(f"{source}: converted already; load it")
        try:
            config = read_config(source / CONFIG)
            read_stop_tokens(source, config)
        except ValueError as error:
            raise ConversionError(str(error)) from error
        tensors = find_tensors(source)
        config = resolve_tied_head(config, tensors)
        leaves = array_infos(family(config).parameter_tree(config))
        left_out = check_tensors(leaves, tensors, family(config).LEFT_OUT)
        if wanted is None:
            wanted = common_dtype(tensors[name].dtype for leaf in leaves for name in leaf.names)
        leaves = [
            dataclasses.replace(part, dtype=wanted, bits=leaf.quantized_bits(bits, quantize_all))
            for leaf in leaves
            for part in leaf.stored
        ]
        return cls(source, config, tensors, leaves, wanted, left_out)

    def write(self, folder: Path) -> dict[str, float]:
        """Write the checkpoint into an empty folder.

        Returns:
            The relative error (root mean square) of every quantised parameter.

        Raises:
            ConversionError: tokenizer or template do not fit, weights are not finite, or writing
                fails.
        """
        _check_space(folder, _bytes(self.leaves))
        self._copy_files(folder)
        fingerprint, errors = self._write_weights(folder / WEIGHTS)
        (folder / FINGERPRINT).write_text(fingerprint)
        write_checksums(folder)
        return errors

    def _copy_files(self, folder: Path) -> None:
        """Copy configuration and tokenizer, and check them before the weights are written."""
        # Beside the configuration transformers would read it too, and complain of its speech parts.
        (folder / TOKENIZER).mkdir()
        copies = {name: folder for name in (CONFIG, GENERATION_CONFIG)}
        copies |= dict.fromkeys(TOKENIZER_FILES, folder / TOKENIZER)
        for name, copy in copies.items():
            if (self.source / name).is_file():
                shutil.copyfile(self.source / name, copy / name)
        try:
            check_tokenizer(load_tokenizer(folder / TOKENIZER), self.config)
        except ValueError as error:
            reason = str(error).removeprefix(f"{folder / TOKENIZER}: ")
            raise ConversionError(f"{self.source}: {reason}") from error

    def _write_weights(self, path: Path) -> tuple[str, dict[str, float]]:
        """Build, write and free one batch of leaves after the other.

        Returns:
            Their fingerprint, and the errors of those that are quantised.
        """
        context = ocp.Context()
        context.memory.deepcopy_host_arrays = False  # the arrays are ours and do not change
        context.array.saving.use_compression = False  # weights hardly shrink, and it takes long
        context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
        remaining = _bytes(self.leaves)
        described, errors = [], {}
        with context, tqdm(total=remaining, unit="B", unit_scale=True, desc="converting") as bar:
            for batch in self._batches():
                _check_space(path.parent, remaining)  # other programs may fill the disk meanwhile
                arrays = {}
                for leaf in batch:
                    built, error = self._build(leaf, bar)
                    parts = zip(leaf.arrays, jax.tree.leaves(built), strict=True)
                    arrays |= {part.path: array for part, array in parts}
                    if leaf.bits:
                        errors["/".join(leaf.path)] = error
                    del built, parts
                described += [describe_array("/".join(path), x) for path, x in arrays.items()]
                _write(ocp.partial.save, path, flax.traverse_util.unflatten_dict(arrays))
                remaining -= _bytes(batch)
                del arrays  # before the next are built
            _write(ocp.partial.finalize, path)
        return digest(sorted(described)), errors

    def _batches(self) -> Iterator[list[ArrayInfo]]:
        """Leaves in order, split where a batch would exceed the largest leaf or ``BATCH_BYTES``."""
        limit = min(BATCH_BYTES, max(leaf.nbytes for leaf in self.leaves))
        batch: list[ArrayInfo] = []
        for leaf in self.leaves:
            if batch and _bytes([*batch, leaf]) > limit:
                yield batch
                batch = []
            batch.append(leaf)
        yield batch

    def _build(self, leaf: ArrayInfo, bar: tqdm) -> tuple[Any, float]:
        """One parameter from its released tensors, and its error if it is quantised.

        Raises:
            ConversionError: names the tensors with values that are not finite in ``dtype``.
        """
        made = leaf.build(lambda array: np.empty(array.shape, array.dtype))
        problems = []
        errors = total = 0.0  # sums of squares
        for name, part in leaf.views(made):
            count = size = 0
            for rows, values in self.tensors[name].slices():
                with np.errstate(over="ignore"):  # counted instead
                    values = values.astype(leaf.dtype)
                wrong = _count_not_finite(values)
                count, size = count + wrong, size + values.size
                if leaf.bits and not wrong:
                    quantized, error = quantize(values.reshape(len(values), -1), leaf.bits)
                    part.values[rows], part.scales[rows] = quantized.values, quantized.scales
                    errors, total = errors + error, total + np.sum(np.square(values, dtype=float))
                elif not leaf.bits:
                    part[rows] = values.reshape(part[rows].shape)
                bar.update(sum(x[rows].nbytes for x in jax.tree.leaves(part)))
            if count:
                problems.append(f"{name}: {count} of {size} values")
        if problems:
            raise ConversionError(listing(f"weights that are not finite in {leaf.dtype}", problems))
        return made, math.sqrt(errors / total) if total else 0.0


def _describe_errors(errors: Mapping[str, float]) -> list[str]:
    """Lines of a report: the error of every quantised parameter, and the largest of each tower.

    Of experts, which are stored by layer, it is that of the layer where it is largest.
    """
    by_parameter: dict[str, float] = {}
    for name, error in errors.items():
        name = re.sub(r"/layers/\d+/", "/layers/", name)
        by_parameter[name] = max(error, by_parameter.get(name, 0.0))
    lines = [f"quantised: {name}, relative error {x:.2%}" for name, x in by_parameter.items()]
    for tower in dict.fromkeys(name.partition("/")[0] for name in errors):
        largest = max(error for name, error in errors.items() if name.startswith(f"{tower}/"))
        lines.append(f"quantised: {tower}: relative error of at most {largest:.2%}")
    return lines


def _bytes(leaves: list[ArrayInfo]) -> int:
    return sum(leaf.nbytes for leaf in leaves)


def _check_absent(target: Path) -> None:
    if target.exists():
        raise ConversionError(f"{target}: exists already; choose another target or remove it")


def _check_space(folder: Path, remaining: int) -> None:
    needed, free = remaining + SPARE_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise ConversionError(
            f"{folder}: disk full; {needed / 1e9:.2f} GB are still needed, "
            f"{free / 1e9:.2f} GB are free"
        )


def _write(write: Callable[..., None], path: Path, *arguments) -> None:
    try:
        write(path, *arguments)
    except Exception as error:
        # Errors of the operating system come as OSError, or in the text of one of TensorStore's.
        if not isinstance(error, OSError) and "os_error_code" not in str(error):
            raise
        raise ConversionError(f"{path}: writing failed: {error}") from error


def _count_not_finite(array: np.ndarray) -> int:
    """Number of infinite and NaN values, whose exponent is all ones; 4 x faster than isfinite."""
    bits = np.dtype(f"u{array.itemsize}")
    exponent = np.array(np.inf, array.dtype).view(bits)
    return int(np.count_nonzero(array.view(bits) & exponent == exponent))
