"""``python -m benchmarks.ahead``: compile the programs of a GPU without one.

XLA can compile for a described device. This shows that the programs compile, which kernels they
call, what they copy, how much memory they need and how many bytes they move. Times are estimates:
nothing runs, and kernels are not tuned. Needs ``pip install -e ".[cuda]"``.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import importlib
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
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
from benchmarks.noise_clip import FULL, KEEP_35, KEEP_45
from benchmarks.program_costs import Cost, Program, operations
from benchmarks.stream import CAPACITY
from omnizip_jax.compression import OmniZipConfig
from omnizip_jax.inference import streaming as stream
from omnizip_jax.inference.chat_template import Modalities
from omnizip_jax.inference.context import PrefillConfig, StreamState
from omnizip_jax.inference.decode import DECODE_BLOCK, DecodeState, SamplingParams, generate_tokens
from omnizip_jax.inference.kv_cache_capacity import _evict
from omnizip_jax.inference.prefill import ENCODE_BLOCK, append_text, prefill_clip
from omnizip_jax.inference.sequence import (
    CACHE_BUCKETS,
    WINDOW_BUCKETS,
    bucket,
    geometry,
    pad_text,
    pad_windows,
    token_counts,
)
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.decoder import CACHE_AXES, KVCache
from omnizip_jax.models.registry import family
from omnizip_jax.models.sharding import axis_sharding, make_mesh
from omnizip_jax.models.weight_mapping import axis_sizes
from omnizip_jax.types import EncodedClip, Window

DTYPE = jnp.dtype(jnp.bfloat16)
ROOM = 64  # tokens of an answer
# Assumed for estimates: measured rates of an H200, and usual times of a launch and of a host read.
BYTES_PER_SECOND, OPERATIONS_PER_SECOND = 4.3e12, 790e12
LAUNCH_SECONDS, READ_SECONDS = 3e-6, 20e-6
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
        cost: kernels, host reads and bytes of a call.
        layer_kernels: of a layer of the decoder, or of the whole program by their number if it
            has no loop over them.
        operations: of products and attention, with all slots of the cache in use.
        floor: bytes of all arguments that are used, without the embeddings, of which rows are read.
    """

    name: str
    seconds: float
    arguments: int
    temporaries: int
    results: int
    in_place: int
    weight_copies: int
    attention: int
    cost: Cost
    layer_kernels: float
    operations: float
    floor: int

    @property
    def estimate(self) -> float:
        """Seconds of a call, from assumed rates."""
        reading = self.cost.moved / BYTES_PER_SECOND
        overhead = self.cost.launches * LAUNCH_SECONDS + self.cost.reads * READ_SECONDS
        return max(reading, self.operations / OPERATIONS_PER_SECOND) + overhead

    @property
    def floor_seconds(self) -> float:
        """The least seconds of a call, by its operations and by the bytes of weights and cache."""
        return max(self.floor / BYTES_PER_SECOND, self.operations / OPERATIONS_PER_SECOND)

    @property
    def needed(self) -> int:
        """Bytes that it needs besides weights."""
        return self.arguments + self.temporaries + self.results - self.in_place


class Target:
    """Lowers and compiles for devices, there or only described."""

    def __init__(self, devices: Sequence[Any], platform: str, config: Any) -> None:
        self.platform, self.config, self.device = platform, config, devices[0]
        mesh = make_mesh(len(devices), axis_sizes(config), devices)
        self.mesh = mesh if len(devices) > 1 else None
        self.backend = Backend.of(self.abstract(jnp.zeros(())))

    def sharding(self, axes: Sequence[str | None] = ()) -> jax.sharding.Sharding:
        """Placement of an array with these logical axes."""
        if self.mesh is None:
            return jax.sharding.SingleDeviceSharding(self.device)
        return axis_sharding(axes, self.mesh, axis_sizes(self.config))

    def abstract(self, tree: Any) -> Any:
        """Shapes of arrays on the devices; keys and values are divided, others on each device.

        Not for weights, which have their placement.
        """

        def place(x: Any, axes: Sequence[str | None] = ()) -> Any:
            if isinstance(x, KVCache):
                keys, values = (
                    jax.tree.map(lambda y: place(y, CACHE_AXES), each)
                    for each in (x.keys, x.values)
                )
                return KVCache(keys, values, place(x.length))
            return x.update(sharding=self.sharding(axes))

        shapes = jax.eval_shape(lambda: tree)
        return jax.tree.map(place, shapes, is_leaf=lambda x: isinstance(x, KVCache))

    @property
    def weights(self) -> Any:
        """The model's weights on the devices."""
        return jax.tree.map(
            lambda info: info.abstract(self.sharding),
            family(self.config).parameter_tree(self.config, DTYPE),
        )

    def compile(
        self, name: str, weights: Any, function: Any, *args: Any, **static: Any
    ) -> Compiled:
        """``args`` begin with the weights, or with a part of them."""
        traced = function.trace(*args, **static)
        lowered = traced.lower(lowering_platforms=(self.platform,))
        began = time.perf_counter()
        program = lowered.compile()
        seconds = time.perf_counter() - began
        memory, text = program.memory_analysis(), program.as_text()
        stack = weights["text"]["layers"]
        layers = len(jax.tree.leaves(stack)[0])
        compiled = Program(text, layers)
        cost, gathered = compiled.cost(), tree_bytes(weights["text"]["embed_tokens"])
        by_layer = [each.kernels for each in compiled.layer_loops()] or [cost.kernels / layers]
        return Compiled(
            name=name,
            seconds=seconds,
            arguments=tree_bytes(args[1:]),
            temporaries=memory.temp_size_in_bytes,
            results=memory.output_size_in_bytes,
            in_place=memory.alias_size_in_bytes,
            weight_copies=weight_copies(text, stack),
            attention=text.count('custom_call_target="__cudnn$fmha'),
            cost=cost,
            layer_kernels=max(by_layer),
            operations=operations(traced.jaxpr.jaxpr),
            floor=memory.argument_size_in_bytes - gathered * ("embed_tokens" in text),
        )


def tree_bytes(tree: Any) -> int:
    """Bytes of a tree's arrays on each device; they may be abstract."""

    def part(x: Any) -> tuple[int, ...]:
        sharding = getattr(x, "sharding", None)
        return x.shape if sharding is None else sharding.shard_shape(x.shape)

    return sum(math.prod(part(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def weight_copies(text: str, layers: Any) -> int:
    """Bytes of slices of the stacked weights that the program writes to memory."""
    matrices = [x for x in jax.tree.leaves(layers) if len(x.shape) == 3]
    sizes = {x.shape[1:]: int(np.prod(x.shape[1:])) * x.dtype.itemsize for x in matrices}
    kernel = re.compile(r"= (\(?bf16\[1,.*?) (?:fusion|fusion-done|copy|dynamic-slice)\(")
    # What stands inside a fusion never reaches memory.
    inside, copies = False, collections.Counter()
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            inside = line.startswith(("%fused", "%wrapped", "%gemm"))
        elif not inside and (found := kernel.search(line)):
            for shape in re.findall(r"bf16\[1,([\d,]+)\]", found[1]):
                copies[tuple(map(int, shape.split(",")))] += 1
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


def h200(config: Any, devices: int = 1) -> Target:
    """Raises ``RuntimeError`` or ``NotImplementedError`` without a compiler for a GPU."""
    described = topologies.get_topology_desc(
        platform="cuda", topology_name="h200", topology=f"1 x 1 x {devices}", target_config=H200
    )
    return Target(described.devices, "cuda", config)


def programs(target: Target, count: int) -> Iterator[Compiled]:
    """Those of ``generate`` on a clip of ``count`` windows, then those of a stream.

    On several devices, where XLA takes much longer, those that need the most memory.
    """
    config, backend, weights = target.config, target.backend, target.weights
    windows = presets.random_windows(1, config)

    def clip(length: int) -> Any:
        return jax.tree.map(lambda x: np.broadcast_to(x[0], (length, *x.shape[1:])), windows)

    block = target.abstract(clip(ENCODE_BLOCK))
    yield target.compile(
        "encoders, 8 windows",
        weights,
        family(config).encode_windows,
        *(weights, block),
        config=config,
        dtype=DTYPE,
        backend=backend,
    )

    encoded = family(config).encode_windows.eval_shape(
        weights, block, config=config, dtype=DTYPE, backend=backend
    )
    padded = bucket(count, WINDOW_BUCKETS)
    encoded = jax.tree.map(lambda x: x.update(shape=(padded, *x.shape[1:])), encoded)
    decode_state = None
    methods = {"all": FULL}
    if target.mesh is None:
        methods |= {"45 %": KEEP_45, "35 %": KEEP_35}
    for name, method in methods.items():
        prefill_config = PrefillConfig(
            config, method, config.spec, Modalities(True, True), DTYPE, DTYPE, backend
        )
        program, found = _first_token(target, name, weights, prefill_config, encoded, clip(count))
        decode_state = found if decode_state is None else decode_state
        yield program
    yield _decoding(target, weights, decode_state, config)
    if target.mesh is None:
        yield from _streaming(target, weights, clip(1), config)


def _first_token(
    target: Target,
    name: str,
    weights: Any,
    prefill_config: PrefillConfig,
    encoded: Any,
    windows: Window,
) -> tuple[Compiled, Any]:
    """The prefill of a clip with its question, and the state of the decoding that follows."""
    config, prompt = prefill_config.config, presets.random_prompt(prefill_config.config)
    counts = token_counts(windows, config)
    prefix = pad_text(prompt.prefix[: -len(prefill_config.markers)])
    question = pad_text(prompt.suffix, prompt.suffix_positions)
    layout = pad_windows(geometry(windows), len(encoded.video_mask))
    budget = prefill_config.method.plan(*counts)
    used = budget.total + len(prompt.prefix) + len(prompt.suffix)
    capacity = bucket(used + ROOM + target.backend.prefill_chunks[-1], CACHE_BUCKETS)

    def begin(weights: Any) -> tuple[KVCache, StreamState]:
        cache = KVCache.empty(config.text, capacity, DTYPE)
        return cache, StreamState.initial(capacity, jax.random.key(0))

    cache, state = jax.eval_shape(begin, weights)
    clip = EncodedClip(encoded, layout, prefix.count)
    arguments = weights, *target.abstract((cache, state, prefix, clip, budget, question))
    static: dict[str, Any] = {"prefill_config": prefill_config}
    program = target.compile(f"first token, {name}", weights, prefill_clip, *arguments, **static)
    cache, state, logits, _ = prefill_clip.eval_shape(*arguments, **static)
    return program, DecodeState(cache, logits, state.after, state.key, state.in_video)


def _decoding(target: Target, weights: Any, decode_state: Any, config: Any) -> Compiled:
    return target.compile(
        f"{DECODE_BLOCK} tokens, after all",
        weights,
        generate_tokens,
        weights["text"],
        *target.abstract(([decode_state], [SamplingParams().sampling], [jnp.int32(1)])),
        config=config.text,
        steps=DECODE_BLOCK,
        end_tokens=(),
        dtype=DTYPE,
        backend=target.backend,
    )


def _streaming(target: Target, weights: Any, clip: Any, config: Any) -> Iterator[Compiled]:
    method = OmniZipConfig()
    prefill_config = PrefillConfig(
        config, method, config.spec, Modalities(True, True), DTYPE, DTYPE, target.backend
    )
    window = target.abstract(jax.tree.map(lambda x: x[0], clip))

    def begin(weights: Any) -> tuple[KVCache, StreamState]:
        state = StreamState.initial(
            CAPACITY, jax.random.key(0), *stream.initial_plan(weights, prefill_config)
        )
        return KVCache.empty(config.text, CAPACITY, DTYPE), state

    cache, state = target.abstract(jax.eval_shape(begin, weights))
    yield target.compile(
        "a streamed window",
        weights,
        stream._feed,
        *(weights, cache, state, window),
        prefill_config=prefill_config,
    )
    text = target.abstract(pad_text(np.zeros(1, np.int32)))
    yield target.compile(
        "a streamed question",
        weights,
        append_text,
        *(weights, cache, text, target.abstract(jnp.int32(0))),
        config=config,
        dtype=DTYPE,
        backend=target.backend,
    )
    yield target.compile(
        "eviction",
        weights,
        _evict,
        *(cache, state, target.abstract(jnp.int32(0))),
        config=config,
        memory="recent",
    )


def table(title: str, columns: dict[str, list[str]]) -> Table:
    out = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns:
        out.add_column(name, no_wrap=True, justify="left" if name == "program" else "right")
    for row in zip(*columns.values(), strict=True):
        out.add_row(*row)
    return out


def memory_columns(rows: list[Compiled]) -> dict[str, list[str]]:
    """Sizes in MiB, by column."""

    def sizes(field: str) -> list[str]:
        values = [getattr(row, field) for row in rows]
        return [f"{value / 2**20:,.0f}" if value else "" for value in values]

    return {
        "program": [row.name for row in rows],
        "XLA s": [f"{row.seconds:.1f}" for row in rows],
        "temporary": sizes("temporaries"),
        "results": sizes("results"),
        "in place": sizes("in_place"),
        "copied": sizes("weight_copies"),
        "cuDNN": [str(row.attention or "") for row in rows],
    }


def time_columns(rows: list[Compiled]) -> dict[str, list[str]]:
    """Counts and estimated times, by column."""
    return {
        "program": [row.name for row in rows],
        "kernels": [f"{row.cost.kernels:,}" for row in rows],
        "a layer": [f"{row.layer_kernels:.1f}" for row in rows],
        "launches": [f"{row.cost.launches:,}" for row in rows],
        "host reads": [str(row.cost.reads) for row in rows],
        "GB moved": [f"{row.cost.moved / 1e9:.2f}" for row in rows],
        "/ floor": [f"{row.cost.moved / row.floor:.2f}" for row in rows],
        "TFLOP": [f"{row.operations / 1e12:.2f}" for row in rows],
        "estimate ms": [f"{row.estimate * 1e3:.1f}" for row in rows],
        "/ floor ms": [f"{row.estimate / row.floor_seconds:.2f}" for row in rows],
    }


def device_columns(
    rows: dict[int, list[Compiled]], weights: dict[int, int]
) -> dict[str, list[str]]:
    """Memory of a device while each program runs, all weights included, by number of devices."""
    names = [row.name for row in min(rows.values(), key=len)]
    columns = {"program": ["weights alone", *names]}
    for count, each in rows.items():
        needed = {row.name: row.needed for row in each}
        sizes = [weights[count], *(weights[count] + needed[name] for name in names)]
        columns[f"{count} x"] = [f"{size / 2**30:.2f}" for size in sizes]
    return columns


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ahead", description=__doc__)
    parser.add_argument("--preset", default="7b", choices=list(presets.PRESETS))
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # what is small is computed here
    # Versions are asked of libraries that want a driver, and nothing runs on a GPU here.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    console, preset = Console(), presets.PRESETS[arguments.preset]
    rows: dict[int, list[Compiled]] = {devices: [] for devices in arguments.devices}
    weights: dict[int, int] = {}
    try:
        with as_on_gpu():
            for devices in arguments.devices:
                target = h200(preset.model, devices)
                weights[devices] = tree_bytes(target.weights)
                for row in programs(target, preset.windows):
                    console.print(f"[dim]{row.name}: {row.seconds:.1f} s[/]", highlight=False)
                    rows[devices].append(row)
    except (RuntimeError, NotImplementedError) as error:
        if any(rows.values()):
            raise
        sys.exit(f'no compiler for a GPU: pip install -e ".[cuda]" brings one ({error})')
    first = arguments.devices[0]
    title = f"{arguments.preset} for {first} x H200, bfloat16"
    console.print(table(f"{title}; MiB", memory_columns(rows[first])))
    console.print(
        "copied: weights of the layers that are written to memory before they are read.\n"
        "in place: results in the memory of an argument, such as the cache.\n"
        "cuDNN: calls of its fused attention; a loop over layers holds one.\n"
    )
    console.print(table(f"{title}; a call, estimated", time_columns(rows[first])))
    console.print(
        "A loop counts as often as it runs, or once if its length is data: a token, or a block of\n"
        "each size. moved: operands and results of all kernels; floor: weights, cache and inputs\n"
        "once. Estimate: the larger of bytes / 4.3 TB/s and operations / 790 TFLOP/s,\n"
        "3 us a launch and 20 us a host read (assumed). launches: of command buffers, which XLA\n"
        "makes of five kernels or more in a row, and of kernels outside them.\n"
    )
    title = f"{arguments.preset}, bfloat16; GiB of each device with all weights"
    console.print(table(title, device_columns(rows, weights)))


if __name__ == "__main__":
    main()
