"""Released safetensors files: location of the tensors, and checks of their names and shapes."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from omnizip_jax.models.parameters import ArrayInfo
from omnizip_jax.models.registry import Config
from omnizip_jax.models.weight_mapping import EMBEDDING, HEAD

DTYPES = {"BF16": jnp.bfloat16, "F16": jnp.float16, "F32": jnp.float32}

# Companions of quantised weights, of GPTQ and AWQ, bitsandbytes, compressed tensors and float8.
QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|SCB|absmax|quant_\w+|weight_(packed|scale\w*))\b"
)
LISTED = 24  # problems of a kind in a message
SLICE_BYTES = 2**22  # read at once; small slices also transpose faster, inside the CPU's cache


class ConversionError(ValueError):
    """The source cannot be converted, or the target cannot be written."""


@dataclasses.dataclass(frozen=True)
class ReleasedTensor:
    """Location, shape and type of a released tensor."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    def slices(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the tensor, some rows of its first axis at a time."""
        row_bytes = 4 * math.prod(self.shape[1:])
        step = max(1, SLICE_BYTES // row_bytes)
        for start in range(0, self.shape[0], step):
            rows = slice(start, min(start + step, self.shape[0]))
            # A handle for each slice: slices read through one stay mapped while it is open.
            with safe_open(self.file, framework="numpy") as handle:
                values = handle.get_slice(self.key)[rows]
            yield rows, values


def find_tensors(source: Path) -> dict[str, ReleasedTensor]:
    """Find every tensor in the safetensors files of a folder, by its released name.

    Saves of the thinker alone may lack the prefix ``thinker.``; it is added.

    Raises:
        ConversionError: no weights, shards missing or damaged.
    """
    tensors = {}
    problems = []
    for file in _shards(source):
        try:
            with safe_open(file, framework="numpy") as handle:
                for key in handle.keys():  # noqa: SIM118 (a handle, not a dict)
                    name = re.sub(r"^(?!thinker\.|talker\.|(token|code)2wav\.)", "thinker.", key)
                    if name in tensors:
                        problems.append(f"{file.name}: has {name} a second time")
                    data = handle.get_slice(key)
                    shape, dtype = tuple(data.get_shape()), data.get_dtype()
                    tensors[name] = ReleasedTensor(file, key, shape, dtype)
        except FileNotFoundError:
            problems.append(f"{file.name}: named in the index, but missing")
        except (SafetensorError, OSError) as error:
            problems.append(f"{file.name}: damaged or not fully downloaded ({error})")
    if problems:
        raise ConversionError(
            listing(f"{source}: unreadable shards. Download them again", problems)
        )
    return tensors


def _shards(source: Path) -> list[Path]:
    index, single = source / "model.safetensors.index.json", source / "model.safetensors"
    if not index.is_file():
        if single.is_file():
            return [single]
        raise ConversionError(
            f"{source}: no weights here; expected {index.name} with its shards, or {single.name}"
        )
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        strange = [file for file in files if Path(file).name != file]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConversionError(f"{index}: damaged index ({error})") from error
    if strange or not files:
        raise ConversionError(f"{index}: damaged index, it names {strange or 'no file'}")
    return [source / file for file in sorted(files)]


def resolve_tied_head(config: Config, tensors: dict[str, ReleasedTensor]) -> Config:
    """Decide from the tensors whether the head shares the embedding table, as transformers does.

    If only one of the two is stored it is used for both; two equal tensors are one; two that
    differ are kept, whatever the configuration says. Removes the duplicate from ``tensors``.
    """
    if not config.text.tied or HEAD not in tensors:
        return config
    head = tensors[HEAD]
    embedding = tensors.setdefault(EMBEDDING, head)
    shape = (config.text.vocabulary, config.text.hidden)
    fit = all(tensor.shape == shape and tensor.dtype in DTYPES for tensor in (head, embedding))
    pairs = zip(head.slices(), embedding.slices(), strict=True) if fit else ()
    if not fit or not all(np.array_equal(one, other) for (_, one), (_, other) in pairs):
        return config.untied()
    del tensors[HEAD]
    return config


def check_tensors(
    leaves: list[ArrayInfo], tensors: Mapping[str, ReleasedTensor], unused: re.Pattern[str]
) -> collections.Counter[str]:
    """Compare expected and stored tensors; returns the number that is left out, by part.

    Args:
        unused: names of tensors that the family leaves out, with the group ``part``.

    Raises:
        ConversionError: names missing, surplus, misshapen and mistyped tensors.
    """
    expected = {name: leaf.released_shape for leaf in leaves for name in leaf.names}
    missing = [
        f"missing   {name}: expected shape {list(shape)}"
        for name, shape in expected.items()
        if name not in tensors
    ]
    if quantised := next(filter(QUANTISED.search, tensors), None):
        raise ConversionError(
            f"the tensors are quantised ({quantised}): convert the original release in bfloat16, "
            "float16 or float32"
        )
    problems: list[str] = []
    left_out: collections.Counter[str] = collections.Counter()
    for name, tensor in tensors.items():
        known = unused.fullmatch(name)
        if name in expected:
            if tensor.shape != expected[name]:
                wanted = list(expected[name])
                problems.append(f"misshapen {name}: expected {wanted}, found {list(tensor.shape)}")
            if tensor.dtype not in DTYPES:
                problems.append(
                    f"mistyped  {name}: expected {', '.join(DTYPES)}, found {tensor.dtype}"
                )
        elif known:
            left_out[known["part"] or name] += 1
        else:
            problems.append(f"surplus   {name}: found shape {list(tensor.shape)}")
    if missing or problems:
        raise ConversionError(listing("the tensors do not fit config.json", missing, problems))
    return left_out


def listing(title: str, *kinds: list[str]) -> str:
    """A message with one problem per line: the first ones of each kind, and the number of all."""
    lines = [f"{title} ({sum(map(len, kinds))}):"]
    for problems in kinds:
        lines += [f"  {problem}" for problem in problems[:LISTED]]
        if len(problems) > LISTED:
            lines.append(f"  and {len(problems) - LISTED:,} more")
    return "\n".join(lines)


def common_dtype(stored: Iterable[str]) -> np.dtype:
    """A supported dtype for all parameters that holds values of these released types exactly."""
    return np.dtype(jnp.bfloat16 if set(stored) <= {"BF16"} else jnp.float32)
