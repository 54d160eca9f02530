"""``python -m benchmarks.ahead``: compile the GPU's programs where there is no GPU.

XLA can compile for a device that it is told about. That shows that the path compiles, which kernels
it calls, what it copies and how much memory it needs; not how fast it is: nothing runs, and kernels
are not tuned. Needs ``pip install -e ".[cuda]"``.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import importlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import presets
from benchmarks.clip import FULL, KEEP_35, KEEP_45
from benchmarks.stream import CAPACITY
from omnizip_jax import stream
from omnizip_jax.compression import OmniZipConfig
from omnizip_jax.decode import DECODE_BLOCK, Sampling, generate_tokens
from omnizip_jax.generate import (
    ENCODE_BLOCK,
    TEXT_BLOCK,
    PromptArrays,
    first_token,
    padded_length,
    prefill_sizes,
    token_counts,
)
from omnizip_jax.models.kernels import Kernels
from omnizip_jax.models.qwen2_5_omni.encoders import encode_windows
from omnizip_jax.models.qwen2_5_omni.parameters import abstract_params

ROOM = 64  # tokens of an answer
# An H200: compute capability 9.0, 132 multiprocessors, 141 GB at 4.8 TB/s (NVIDIA's data sheet).
H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 150754820096
  memory_bandwidth: 4800000000000
  l2_cache_size: 62914560
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 20 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H200"
"""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one program; sizes in bytes.

    Attributes:
        arguments: what it is given besides weights.
        weight_copies: of the layers' weights, written to memory before they are read.
        in_place: results that take the memory of an argument.
        attention: calls of cuDNN's fused attention in the program's text.
    """

    name: str
    seconds: float
    arguments: int
    temporaries: int
    results: int
    in_place: int
    weight_copies: int
    attention: int


class Target:
    """Lowers and compiles for one device, there or only described."""

    def __init__(self, device: Any, platform: str) -> None:
        self.sharding, self.platform = jax.sharding.SingleDeviceSharding(device), platform
        self.kernels = Kernels.of(self.abstract(jnp.zeros(())))

    def abstract(self, tree: Any) -> Any:
        """Shapes of arrays on the device."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding),
            jax.eval_shape(lambda: tree),
        )

    def compile(
        self, name: str, weights: Any, function: Any, *args: Any, **static: Any
    ) -> Compiled:
        """``args`` begin with the weights, or the decoder's alone."""
        lowered = function.trace(*args, **static).lower(lowering_platforms=(self.platform,))
        began = time.perf_counter()
        program = lowered.compile()
        seconds = time.perf_counter() - began
        memory, text = program.memory_analysis(), program.as_text()
        return Compiled(
            name=name,
            seconds=seconds,
            arguments=tree_bytes(args[1:]),
            temporaries=memory.temp_size_in_bytes,
            results=memory.output_size_in_bytes,
            in_place=memory.alias_size_in_bytes,
            weight_copies=weight_copies(text, weights["text"]["layers"]),
            attention=text.count('custom_call_target="__cudnn$fmha'),
        )


def tree_bytes(tree: Any) -> int:
    """Bytes of a tree's arrays, abstract ones too."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def weight_copies(text: str, layers: Any) -> int:
    """Bytes of slices of the stacked weights that the program writes to memory."""
    matrices = [x for x in jax.tree.leaves(layers) if len(x.shape) == 3]
    sizes = {x.shape[1:]: int(np.prod(x.shape[1:])) * x.dtype.itemsize for x in matrices}
    kernel = re.compile(r"= bf16\[1,([\d,]+)\]\S* (?:fusion|fusion-done|copy|dynamic-slice)\(")
    # What stands inside a fusion never reaches memory.
    inside, copies = False, collections.Counter()
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            inside = line.startswith(("%fused", "%wrapped", "%gemm"))
        elif not inside and (found := kernel.search(line)):
            copies[tuple(map(int, found[1].split(",")))] += 1
    copies = {shape: count for shape, count in copies.items() if shape in sizes}
    # The copy of a scanned layer stands in the text once, that of unrolled ones once a layer.
    count = matrices[0].shape[0]
    runs = count if max(copies.values(), default=0) < count else 1
    return runs * sum(sizes[shape] * times for shape, times in copies.items())


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """JAX believes that there is a cuDNN, one that has all it wants."""
    cudnn = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    found = {
        "check_cudnn_version": lambda: 92000,
        "check_compute_capability": lambda wanted: float(wanted) <= 9.0,
        "is_cuda_compute_capability_equal": lambda wanted: float(wanted) == 9.0,
    }
    with mock.patch.multiple(cudnn, **found):
        yield


def h200() -> Target:
    """Raises ``RuntimeError`` or ``NotImplementedError`` without a compiler for a GPU."""
    described = topologies.get_topology_desc(
        platform="cuda", topology_name="h200", topology="1 x 1 x 1", target_config=H200
    )
    return Target(described.devices[0], "cuda")


def programs(target: Target, preset: str, count: int) -> Iterator[Compiled]:
    """Those of ``generate`` on a clip of ``count`` windows, then those of a stream."""
    config, kernels = presets.PRESETS[preset].model, target.kernels
    weights = target.abstract(abstract_params(config, jnp.dtype(jnp.bfloat16)))
    windows = presets.random_windows(1, config)

    def clip(length: int) -> Any:
        return jax.tree.map(lambda x: np.broadcast_to(x[0], (length, *x.shape[1:])), windows)

    block = target.abstract(clip(ENCODE_BLOCK))
    yield target.compile(
        "encoders, 8 windows",
        weights,
        encode_windows,
        *(weights, block),
        config=config,
        kernels=kernels,
    )

    padded = padded_length(count)
    encoded = jax.eval_shape(lambda w, x: encode_windows(w, x, config=config), weights, block)
    encoded = jax.tree.map(lambda x: jax.ShapeDtypeStruct((padded, *x.shape[1:]), x.dtype), encoded)
    prompt = presets.random_prompt(config)
    text = len(prompt.prefix) + len(prompt.suffix)
    audio, video = token_counts(clip(count))
    generation = None
    for name, compression in (("all", FULL), ("45 %", KEEP_45), ("35 %", KEEP_35)):
        sizes = prefill_sizes(audio, video, text, compression, ROOM)
        arguments = target.abstract(
            (
                weights,
                encoded,
                clip(padded).replace(patches=None, mel=None),
                PromptArrays.from_prompt(prompt),
                jnp.int32(0),
                jax.random.key(0),
            )
        )
        static: dict[str, Any] = {"config": config, "compression": compression, **sizes}
        static["kernels"] = kernels
        yield target.compile(f"first token, {name}", weights, first_token, *arguments, **static)
        if generation is None:
            generation = first_token.eval_shape(*arguments, **static)[0]
    yield _decoding(target, weights, generation, config)
    yield from _streaming(target, weights, clip(1), config)


def _decoding(target: Target, weights: Any, generation: Any, config: Any) -> Compiled:
    return target.compile(
        f"{DECODE_BLOCK} tokens, after all",
        weights,
        generate_tokens,
        *target.abstract((weights["text"], generation, Sampling.of(0.0, 1.0), jnp.int32(1))),
        config=config.text,
        steps=DECODE_BLOCK,
        end_tokens=(),
        kernels=target.kernels,
    )


def _streaming(target: Target, weights: Any, clip: Any, config: Any) -> Iterator[Compiled]:
    def begin(weights: Any) -> Any:
        params = presets.random_params(config, jnp.dtype(jnp.bfloat16), weights)
        return stream.init_stream(params, OmniZipConfig(), capacity=CAPACITY)

    with (  # nothing is there to be read, or to be moved to
        mock.patch.object(stream, "fingerprint", lambda params: ()),
        mock.patch.object(stream, "_commit", lambda tree, like: tree),
    ):
        state = jax.eval_shape(begin, weights)
    state = state.replace(settings=dataclasses.replace(state.settings, kernels=target.kernels))
    cache, rest = target.abstract((state.cache, state.replace(cache=None)))
    window = target.abstract(jax.tree.map(lambda x: x[0], clip))
    yield target.compile("a streamed window", weights, stream._feed, weights, cache, rest, window)
    tokens = target.abstract(jnp.zeros(TEXT_BLOCK, jnp.int32))
    yield target.compile(
        "a streamed question",
        weights,
        stream._append_text,
        *(weights, cache, tokens, tokens, target.abstract(jnp.int32(1))),
        config=state.settings.model,
        kernels=target.kernels,
    )
    yield target.compile("forgetting", weights, stream._forget, cache, rest)


def table(title: str, rows: list[Compiled]) -> Table:
    out = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column("program", no_wrap=True)
    for column in ("XLA s", "temporary", "results", "in place", "copied", "cuDNN"):
        out.add_column(column, no_wrap=True, justify="right")
    for row in rows:
        sizes = (row.temporaries, row.results, row.in_place, row.weight_copies)
        out.add_row(
            row.name,
            f"{row.seconds:.1f}",
            *(f"{size / 2**20:,.0f}" if size else "" for size in sizes),
            str(row.attention or ""),
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ahead", description=__doc__)
    parser.add_argument("--preset", default="7b", choices=list(presets.PRESETS))
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # what is small is computed here
    console, rows, windows = Console(), [], presets.PRESETS[arguments.preset].windows
    try:
        with as_on_gpu():
            for row in programs(h200(), arguments.preset, windows):
                console.print(f"[dim]{row.name}: {row.seconds:.1f} s[/]", highlight=False)
                rows.append(row)
    except (RuntimeError, NotImplementedError) as error:
        if rows:
            raise
        sys.exit(f'no compiler for a GPU: pip install -e ".[cuda]" brings one ({error})')
    console.print(table(f"{arguments.preset} for an H200, bfloat16; MiB", rows))
    console.print(
        "copied: weights of the layers that are written to memory before they are read.\n"
        "in place: results in the memory of an argument, such as the cache.\n"
        "cuDNN: calls of its fused attention; a loop over layers holds one."
    )


if __name__ == "__main__":
    main()
