"""Choices of the GPU backend, traced and computed on a CPU."""

from __future__ import annotations

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Jaxpr

import omnizip_jax
from benchmarks.ahead import (
    Compiled,
    Target,
    as_on_gpu,
    device_columns,
    main,
    programs,
    weight_copies,
)
from benchmarks.presets import PRESETS
from benchmarks.program_costs import Cost
from omnizip_jax.inference.prefill import ENCODE_BLOCK
from omnizip_jax.inference.sequence import pad_windows
from omnizip_jax.models import attention, rope
from omnizip_jax.models import layer_scan as layers
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.decoder import Decoder, KVCache
from omnizip_jax.models.qwen2_5_omni.encoders import encode_windows
from omnizip_jax.models.qwen2_5_omni.weight_mapping import parameter_tree
from omnizip_jax.models.weight_mapping import abstract
from omnizip_jax.window_spec import WindowSpec
from tests.conftest import make_windows

CONFIG = PRESETS["tiny"].model
WINDOWS = 7  # differs from every size of the model


def equations(jaxpr):
    """All equations of a program, inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if isinstance(inner, Jaxpr):
                yield from equations(inner)


def test_encoders_read_one_copy_of_their_weights():
    config = dataclasses.replace(  # three layers: no other size is 3
        CONFIG,
        audio=dataclasses.replace(CONFIG.audio, layers=3),
        vision=dataclasses.replace(CONFIG.vision, layers=3),
    )
    weights = abstract(parameter_tree(config, jnp.dtype(jnp.bfloat16)))
    windows = make_windows([2, 1, 0, 2, 2, 2, 2], [200, 200, 200, 0, 200, 200, 13])
    encode = functools.partial(
        encode_windows.__wrapped__,
        config=config,
        dtype=jnp.dtype(jnp.bfloat16),
        backend=Backend.GPU,
    )
    with as_on_gpu():
        program = jax.make_jaxpr(encode)(weights, windows)
    shapes = [x.aval.shape for equation in equations(program.jaxpr) for x in equation.outvars]
    for name in ("audio", "vision"):
        for weight in jax.tree.leaves(weights[name]):
            if len(weight.shape) > 2:  # a stack of matrices
                copied = sorted((*weight.shape, WINDOWS))
                assert not [shape for shape in shapes if sorted(shape) == copied]
    assert "dot_product_attention_fwd" in str(program)  # cuDNN's


def test_encoders_agree(params, random_windows):
    weights, config = params.weights, params.config
    # As many as ENCODE_BLOCK: a program that other tests have compiled.
    windows = pad_windows(random_windows([2, 1, 0, 2], [200, 133, 200, 0]), ENCODE_BLOCK)
    cpu = encode_windows(weights, windows, config=config)
    with as_on_gpu():
        gpu = encode_windows(weights, windows, config=config, backend=Backend.GPU)
    for a, b, mask in (
        (cpu.video, gpu.video, cpu.video_mask),
        (cpu.audio.tokens, gpu.audio.tokens, cpu.audio.token_mask),
        (cpu.audio.keys, gpu.audio.keys, cpu.audio.frame_mask),
    ):
        np.testing.assert_allclose(a[mask], b[mask], atol=1e-5)
        assert np.isfinite(b).all()
    for name in ("token_mask", "frame_mask"):
        np.testing.assert_array_equal(getattr(cpu.audio, name), getattr(gpu.audio, name))
    np.testing.assert_array_equal(cpu.video_mask, gpu.video_mask)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_decoders_agree(params, dtype, interpreted_kernels):
    """One row (multiplied and summed on a GPU), and several (unrolled layers on a GPU)."""
    config, dtype = params.config.text, jnp.dtype(dtype)
    weights = jax.tree.map(lambda x: x.astype(dtype), params.weights["text"])
    key = jax.random.key(0)
    x = jax.random.normal(key, (5, config.hidden), dtype)
    state = jax.random.normal(key, (2, config.layers, 16, config.kv_heads, config.head_dim), dtype)
    cache = KVCache(state[0], state[1], jnp.int32(9))

    @jax.jit
    def run(weights, x, cache):
        def decode(tokens, backend):
            decoder = Decoder(config, dtype, backend)
            positions = rope.text_positions(9, tokens)
            hidden, after = decoder.apply({"params": weights}, x[:tokens], positions, cache)
            return hidden, after.keys, after.values, after.length

        return [[decode(tokens, backend) for backend in Backend] for tokens in (1, 5)]

    tolerance = 1e-5 if dtype == jnp.float32 else 0.1  # bfloat16: sums in another order
    pairs = [(cpu, other) for cpu, *others in run(weights, x, cache) for other in others]
    for cpu, other in pairs:
        for a, b in zip(cpu, other, strict=True):
            np.testing.assert_allclose(
                np.asarray(a, np.float32), np.asarray(b, np.float32), atol=tolerance, rtol=tolerance
            )


@pytest.mark.parametrize(
    "mask_axes",
    [
        pytest.param((None, None), marks=pytest.mark.slow),
        (0, None),
        pytest.param((0, 0), marks=pytest.mark.slow),
    ],
)
def test_cudnn_takes_batches_of_batches(mask_axes, monkeypatch):
    """XLA's implementation replaces the kernel, which needs a GPU."""
    kernel = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    shapes = []

    def recorded(q, k, v, mask, implementation):
        assert implementation == "cudnn"
        shapes.append((q.shape, mask.shape))
        return kernel(q, k, v, mask=mask)

    rng = np.random.default_rng(0)
    outer, inner, keys = 2, 3, 7
    queries = 5 + mask_axes.count(0)  # another shape: JAX caches traces
    q = rng.standard_normal((outer, inner, queries, 4, 8)).astype(np.float32)
    k, v = rng.standard_normal((2, outer, inner, keys, 2, 8)).astype(np.float32)
    axes = tuple(n for n, axis in zip((outer, inner), mask_axes, strict=True) if axis is not None)
    mask = rng.random((*axes, 1, queries, keys)) < 0.6
    mask[..., 0] = True

    attend = functools.partial(attention.attend, fused=True)

    def batched(q, k, v, mask):
        over_inner = jax.vmap(attend, in_axes=(0, 0, 0, mask_axes[1]))
        return jax.vmap(over_inner, in_axes=(0, 0, 0, mask_axes[0]))(q, k, v, mask)

    expected = batched(q, k, v, mask)
    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    monkeypatch.setattr(attention, "_fits_cudnn", lambda q: True)
    given = batched(q, k, v, mask)
    np.testing.assert_allclose(given, expected, atol=1e-6)
    assert shapes[-1] == ((outer * inner, queries, 4, 8), (outer * inner, 1, queries, keys))


@pytest.mark.slow
def test_every_program_takes_the_backend_of_the_weights_device(
    params, random_windows, monkeypatch, cache_folder, interpreted_kernels
):
    taken, run = [], layers.run
    monkeypatch.setattr(Backend, "of", classmethod(lambda cls, tree: Backend.GPU))
    monkeypatch.setattr(layers, "run", lambda *a, **k: taken.append(k["backend"]) or run(*a, **k))
    omnizip_jax.warmup(params, 2.0, max_new_tokens=1)
    state = omnizip_jax.init_stream(params, spec=WindowSpec(grid_slots=16), capacity=1024)
    windows = random_windows([2], [200])
    state = omnizip_jax.feed(params, state, jax.tree.map(lambda x: x[0], windows))
    omnizip_jax.ask(params, state, "What?", max_new_tokens=1, keep=True)
    assert len(taken) > 10 and set(taken) == {Backend.GPU}


def test_the_backend_is_that_of_the_device():
    assert Backend.of({"a": jnp.zeros(2)}) == Backend.CPU
    assert Backend.of(jax.ShapeDtypeStruct((), jnp.int32)) == Backend.CPU
    gpu = types.SimpleNamespace(device_set=[types.SimpleNamespace(id=0, platform="gpu")])
    assert Backend.of([types.SimpleNamespace(sharding=gpu)]) == Backend.GPU


def test_float32_is_float32():
    """Every product in the programs requests it; a GPU would use TF32 otherwise."""
    weights = abstract(parameter_tree(CONFIG))
    windows = make_windows([2], [200])
    for backend in Backend:
        encode = functools.partial(encode_windows.__wrapped__, config=CONFIG, backend=backend)
        programs = [jax.make_jaxpr(encode)(weights, windows)]
        for tokens in (1, 5):
            cache = KVCache.empty(CONFIG.text, 16)
            decoder = Decoder(CONFIG.text, backend=backend)
            x, positions = jnp.zeros((tokens, CONFIG.text.hidden)), rope.text_positions(9, tokens)

            def read(weights, x, decoder=decoder, cache=cache, positions=positions):
                bound = decoder.bind({"params": weights["text"]})
                return bound.logits(bound(x, positions, cache)[0])

            programs.append(jax.make_jaxpr(read)(weights, x))
        for program in programs:
            products = [
                equation
                for equation in equations(program.jaxpr)
                if equation.primitive.name in ("dot_general", "conv_general_dilated")
            ]
            assert products
            for product in products:
                precision = product.params["precision"]
                assert precision == (jax.lax.Precision.HIGHEST,) * 2, product


def test_copies_of_weights_are_counted():
    layers = {"a": jax.ShapeDtypeStruct((3, 20, 30), jnp.bfloat16)}
    text = """
%fused_dynamic_slice (p: bf16[3,20,30]) -> bf16[1,20,30] {
  ROOT %slice = bf16[1,20,30]{2,1,0} dynamic-slice(%p), dynamic_slice_sizes={1,20,30}
}
%body (arg: bf16[3,20,30]) -> bf16[7,30] {
  %copy = bf16[1,20,30]{2,1,0} fusion(%arg), kind=kCustom, calls=%fused_dynamic_slice
  %other = bf16[1,7,30]{2,1,0} fusion(%arg), kind=kLoop
}
"""
    assert weight_copies(text, layers) == 3 * 20 * 30 * 2  # the loop runs three times
    once_a_layer = text.replace("  %other", 2 * ("  %copy = bf16[1,20,30] copy(%x)\n") + "  %other")
    assert weight_copies(once_a_layer, layers) == 3 * 20 * 30 * 2
    assert weight_copies(text.replace("20,30]{2,1,0} fusion", "30]{1,0} fusion"), layers) == 0


def test_every_program_lowers_for_a_gpu(monkeypatch, interpreted_kernels):
    """Lowering only: attention to a window is cuDNN's, to a cache a kernel's; it is donated."""
    lowered = []

    def lower(self, name, weights, function, *args, **static):
        traced = function.trace(*args, **static)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        primitives = {equation.primitive.name for equation in equations(traced.jaxpr.jaxpr)}
        lowered.append((function.__name__, text, primitives))
        return Compiled(name, 1.0, 1, 2, 3, 0, 0, 0, Cost(), 0, 0, 0)

    monkeypatch.setattr(Target, "compile", lower)
    target = Target(jax.devices()[:1], "cuda", CONFIG)
    target.backend = Backend.GPU
    with as_on_gpu():
        names = [row.name for row in programs(target, 3)]
    assert names == [
        "encoders, 8 windows",
        "first token, all",
        "first token, 45 %",
        "first token, 35 %",
        "8 tokens, after all",
        "a streamed window",
        "a streamed question",
        "eviction",
    ]
    for name, text, primitives in lowered:
        assert ("__cudnn$fmha" in text) == (name in ("encode_windows", "_feed")), name
        assert ("pallas_call" in primitives) == (name not in ("encode_windows", "_evict")), name
        continues = name not in ("encode_windows",)
        assert ("jax.buffer_donor" in text or "tf.aliasing_output" in text) == continues, name


def test_memory_of_a_device_includes_the_weights():
    rows = [Compiled(n, 1.0, 2**30, 2**31, 2**29, 2**29, 0, 0, Cost(), 0, 0, 0) for n in "ab"]
    assert device_columns({1: rows, 2: rows[:1]}, {1: 2**32, 2: 2**31}) == {
        "program": ["weights alone", "a"],
        "1 x": ["4.00", "7.00"],
        "2 x": ["2.00", "5.00"],
    }


def test_a_missing_compiler_is_reported(monkeypatch):
    def absent(**_):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", absent)
    monkeypatch.setattr("sys.argv", ["ahead"])
    with pytest.raises(SystemExit, match=r"\[cuda\]"):
        main()
