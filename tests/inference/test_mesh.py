"""Several devices give the answers of one, keep the placement, and gather nothing large."""

from __future__ import annotations

import math
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from omnizip_jax import ask, feed, fork, generate, init_stream, restore, save
from omnizip_jax.checkpoint.load import load
from omnizip_jax.compression import FastV, OmniZipConfig
from omnizip_jax.inference.decode import SamplingParams
from omnizip_jax.inference.generation import begin, step_batch
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.decoder import CACHE_AXES, Decoder, KVCache
from omnizip_jax.models.rope import text_positions
from omnizip_jax.window_spec import WindowSpec
from tests.conftest import clip_of

SPEC = WindowSpec(grid_slots=16)
QUESTIONS = ("What happens?", "Who is it, and why?")
STREAMED = 12  # windows, more than the cache holds
DEVICES = [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 4, 8))]


@pytest.fixture(scope="module", params=DEVICES)
def divided(checkpoint, request):
    """The tiny model on several devices."""
    return load(checkpoint, mesh=request.param)


@pytest.fixture(scope="module")
def windows(random_windows):
    return random_windows([2, 2, 1], [200, 200, 77])


def streamed(params, windows, count):
    state = init_stream(params, capacity=768, text_slots=192, spec=SPEC)
    for i in range(count):
        state = feed(params, state, jax.tree.map(lambda x, i=i: x[i % 3], windows))
        assert placed(params, state)
    return state


def placed(params, state):
    """Whether keys and values are where the weights of their heads are."""
    caches = state.cache if isinstance(state.cache, tuple) else (state.cache,)
    return all(
        x.sharding.is_equivalent_to(params.sharding(CACHE_AXES), x.ndim)
        for cache in caches
        for x in (cache.keys, cache.values)
    )


def assert_close(one, other):
    error = np.abs(np.asarray(one) - np.asarray(other)).max()
    assert error <= 1e-5 * np.abs(one).max()


def test_weights_are_divided(divided, tiny):
    count = divided.mesh.size
    assert divided.mesh.shape["model"] == min(count, 2)  # key heads
    for name, axis in (("q_proj", 1), ("k_proj", 1), ("o_proj", 2)):
        weight = divided.weights["text"]["layers"]["self_attn"][name]["weight"]
        shape = weight.addressable_shards[0].data.shape
        assert weight.shape[axis] == min(count, 2) * shape[axis]
    for weight in (
        divided.weights["text"]["layers"]["mlp"]["down_proj"]["weight"].mT,
        divided.weights["text"]["lm_head"]["weight"],
    ):
        assert weight.shape[-2] == count * weight.addressable_shards[0].data.shape[-2]
    jax.tree.map(np.testing.assert_array_equal, divided.weights, tiny.weights)
    assert divided.fingerprint == tiny.fingerprint


def test_streams_agree(divided, tiny, windows, caplog):
    """With an eviction, and an answer that is kept; a second stream compiles nothing."""
    found = []
    for params in (tiny, divided):
        state = streamed(params, windows, STREAMED)
        begun = begin(params, fork(state), QUESTIONS[0], SamplingParams(6), copy=False)
        answer, after = ask(params, state, QUESTIONS[1], keep=True, max_new_tokens=6)
        assert placed(params, after)
        found.append((begun.decode_state.logits, int(state.cache.length), answer.token_ids))
    assert_close(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]
    with jax.log_compiles():
        ask(divided, streamed(divided, windows, STREAMED), QUESTIONS[1], max_new_tokens=6)
    assert "Compiling" not in caplog.text


@pytest.mark.parametrize(
    "method", [OmniZipConfig(), FastV()], ids=lambda method: type(method).__name__
)
@pytest.mark.slow
def test_clips_agree(divided, tiny, windows, method):
    clip = clip_of(windows)
    answers = [
        generate(params, clip, QUESTIONS[0], compression=method, max_new_tokens=12).token_ids
        for params in (tiny, divided)
    ]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_batches_agree(divided, tiny, windows):
    steps = []
    for params in (tiny, divided):
        state = streamed(params, windows, 2)
        begun = [begin(params, state, question, SamplingParams(8)) for question in QUESTIONS]
        steps.append([(each.ids, each.decode_state.logits) for each in step_batch(params, begun)])
    for (ids, logits), (other_ids, other_logits) in zip(*steps, strict=True):
        assert ids == other_ids
        assert_close(logits, other_logits)


@pytest.mark.slow
def test_snapshots_are_loaded_onto_any_devices(divided, tiny, windows, tmp_path):
    answers = []
    for number, params in enumerate((tiny, divided)):
        save(streamed(params, windows, 2), tmp_path / f"saved{number}")
        for other in (tiny, divided):
            state = restore(other, tmp_path / f"saved{number}")
            assert placed(other, state)
            answers.append(ask(other, state, QUESTIONS[0], max_new_tokens=6)[0].token_ids)
    assert len(set(answers)) == 1


@pytest.mark.parametrize("tokens", [1, pytest.param(300, marks=pytest.mark.slow)])
def test_a_layer_has_two_all_reduces(divided, tokens):
    """And neither weights nor keys and values leave their device."""
    text, backend = divided.config.text, Backend.of(divided.weights)
    cache = KVCache.empty(text, 1024, sharding=divided.sharding(CACHE_AXES))
    cache = cache.replace(length=jax.device_put(cache.length, divided.sharding()))

    @jax.jit
    def run(weights, x, cache):
        decoder = Decoder(text, backend=backend).bind({"params": weights})
        return decoder(x, text_positions(cache.length, tokens), cache)

    program = run.lower(divided.weights["text"], jnp.zeros((tokens, text.hidden)), cache).compile()
    compiled = str(program.as_text())
    moved = re.findall(r"= \S+ (all-[\w-]+|collective-[\w-]+|reduce-scatter)\(", compiled)
    assert moved == ["all-reduce"] * 2 * (divided.mesh.size > 1)
    _, after = program(divided.weights["text"], jnp.zeros((tokens, text.hidden)), cache)
    assert after.keys.sharding.is_equivalent_to(cache.keys.sharding, 4)


@pytest.mark.parametrize("tokens", [1, 8])
def test_an_embedding_is_read_where_it_is(divided, tokens):
    """Its rows leave their devices, and not the table."""
    text, backend = divided.config.text, Backend.of(divided.weights)

    @jax.jit
    def run(weights, ids):
        return Decoder(text, backend=backend).bind({"params": weights}).embed(ids)

    ids = jnp.arange(tokens)
    program = run.lower(divided.weights["text"], ids).compile()
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* all-[\w-]+\(", str(program.as_text()))
    assert all(math.prod(map(int, each.split(","))) == tokens * text.hidden for each in shapes)
    expected = divided.weights["text"]["embed_tokens"]["embedding"][:tokens]
    np.testing.assert_array_equal(program(divided.weights["text"], ids), expected)


HOST = """
import sys, jax
path, address, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(address, 2, rank)
from omnizip_jax import ask, generate, load
from tests.conftest import clip_of, make_windows
from tests.inference.test_mesh import QUESTIONS, streamed
params = load(path, mesh=2)
windows = make_windows([2, 2, 1], [200, 200, 77])
answer = generate(params, clip_of(windows), QUESTIONS[0], max_new_tokens=6)
later, _ = ask(params, streamed(params, windows, 2), QUESTIONS[1], max_new_tokens=6)
print("answers", answer.token_ids, later.token_ids)
"""


@pytest.mark.slow
def test_two_processes_answer_as_one(checkpoint, tiny, windows):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", HOST, str(checkpoint), address]
    hosts = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    answers = [host.communicate(timeout=600)[0].splitlines()[-1] for host in hosts]
    answer = generate(tiny, clip_of(windows), QUESTIONS[0], max_new_tokens=6)
    later, _ = ask(tiny, streamed(tiny, windows, 2), QUESTIONS[1], max_new_tokens=6)
    assert answers == [f"answers {answer.token_ids} {later.token_ids}"] * 2


def mesh(devices, names=("model",), kind=AxisType.Auto):
    return Mesh(np.array(jax.devices()[:devices]), names, axis_types=(kind,))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: 3, "128 ffn do not divide by 3 devices"),
        (lambda: 9, "from 1 to 8"),
        (lambda: "2", "from 1 to 8"),
        (lambda: mesh(8), "4 heads do not divide by 8 devices"),
        (lambda: mesh(4), "2 kv_heads do not divide by 4 devices"),
        (lambda: mesh(2, ("x",)), 'needs an axis "model"'),
        (lambda: mesh(2, kind=AxisType.Explicit), "of type Auto"),
    ],
)
def test_meshes_that_do_not_fit(checkpoint, given, message, monkeypatch):
    monkeypatch.setattr("orbax.checkpoint.v1.load", None)
    with pytest.raises(ValueError, match=message):
        load(checkpoint, mesh=given())


def test_the_active_mesh_is_used(checkpoint, tiny):
    with jax.set_mesh(mesh(2)):
        params = load(checkpoint)
        assert params.mesh == mesh(2)
        state = init_stream(params, capacity=768, text_slots=192, spec=SPEC)
        inside = ask(params, state, QUESTIONS[0], max_new_tokens=2)[0].token_ids
    state = init_stream(tiny, capacity=768, text_slots=192, spec=SPEC)
    assert inside == ask(tiny, state, QUESTIONS[0], max_new_tokens=2)[0].token_ids
