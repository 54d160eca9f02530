"""The vision encoders of both families against transformers', float32."""

from __future__ import annotations

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as networks
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as networks3

from omnizip_jax.models.encoder_layers import normalise
from omnizip_jax.models.qwen2_5_omni import config as sizes
from omnizip_jax.models.qwen2_5_omni import vision
from omnizip_jax.models.qwen3_omni import config as sizes3
from omnizip_jax.models.qwen3_omni import vision as vision3
from tests.models import hf
from tests.models.hf import to_flax

# 4 x 4 tokens of 2 x 2 patches in a window, and 144 slots, as released.
CONFIG = sizes.VisionConfig(
    layers=4,
    hidden=32,
    heads=2,
    ffn=48,
    channels=3,
    patch=2,
    temporal_patch=2,
    merge=2,
    window=16,
    full_attention_layers=(1, 3),
    output=24,
)
# Qwen3's differ in heads, the table of positions and the DeepStack layers.
CONFIGS_3 = [
    sizes3.VisionConfig(
        layers=4,
        hidden=32,
        heads=heads,
        ffn=40,
        channels=3,
        patch=2,
        temporal_patch=2,
        merge=2,
        output=24,
        positions=side**2,
        deepstack=deepstack,
    )
    for heads, side, deepstack in ((2, 12, (0, 1, 3)), (4, 7, (2,)), (1, 48, (1, 2)))
]
CONFIGS = [
    pytest.param(CONFIG, id="qwen2_5"),
    pytest.param(CONFIGS_3[0], id="qwen3"),
    *(pytest.param(config, id="qwen3", marks=pytest.mark.slow) for config in CONFIGS_3[1:]),
]
RELEASED = sizes.VisionConfig(
    layers=32,
    hidden=1280,
    heads=16,
    ffn=3420,
    channels=3,
    patch=14,
    temporal_patch=2,
    merge=2,
    window=112,
    full_attention_layers=(7, 15, 23, 31),
    output=2048,
)
RELEASED_3 = sizes3.VisionConfig(
    layers=27,
    hidden=1152,
    heads=16,
    ffn=4304,
    channels=3,
    patch=16,
    temporal_patch=2,
    merge=2,
    output=2048,
    positions=2304,
    deepstack=(8, 16, 24),
)
SLOTS = 144


def of_family(config):
    """Our module and transformers' of the family of a configuration."""
    return (vision3, networks3) if isinstance(config, sizes3.VisionConfig) else (vision, networks)


def encoder(config, **settings):
    return of_family(config)[0].VisionEncoder(config, **settings)


@pytest.fixture(scope="module", params=CONFIGS)
def config(request):
    return request.param


@pytest.fixture(scope="module")
def oracle(config):
    return hf.oracle(config)


@pytest.fixture(scope="module")
def params(oracle):
    return {"params": jax.tree.map(jnp.asarray, to_flax(oracle.state_dict()))}


@pytest.fixture(scope="module")
def encode(config, params):
    """Encode one grid; fails if any test makes it trace a second time.

    Returns the tokens and the DeepStack rows, [1 + K, slots, width].
    """
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def one(patches, grid_size):
        return encoder(config).apply(params, patches, grid_size)[:2]

    def joined(patches, rows, columns):
        tokens, deepstack = one(in_slots(patches), jnp.array([rows, columns]))
        return np.stack([tokens, *([] if deepstack is None else deepstack)])

    return joined


def random_grid(rows, columns, grids=1, seed=0):
    """Random patches of some grids [grids * patches, values]."""
    shape = (grids * rows * columns * CONFIG.merge**2, CONFIG.patch_values)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def in_slots(patches, slots=SLOTS):
    """Fill the slots behind a grid with noise, which must have no effect."""
    noise = np.random.default_rng(len(patches)).integers(
        0, 256, (slots * CONFIG.merge**2 - len(patches), CONFIG.patch_values), dtype=np.uint8
    )
    return np.concatenate([patches, noise])


def run_oracle(oracle, config, patches, rows, columns, grids=1):
    """Tokens and DeepStack rows, [1 + K, tokens, width]."""
    own, _ = of_family(config)
    pixels = normalise(jnp.asarray(patches), own.PIXEL_MEAN, own.PIXEL_STD)
    size = torch.tensor([[grids, rows * config.merge, columns * config.merge]])
    with torch.no_grad():
        out = oracle(torch.from_numpy(np.array(pixels)), grid_thw=size)
    return np.stack([out.pooler_output, *out.get("deepstack_features", [])])


# Whole windows, partial ones at either edge, single rows and columns, up to all the slots.
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(12, 12), (9, 16), (16, 9), (8, 4), (3, 5), (5, 3), (1, 7), (1, 144), (144, 1), (1, 1)],
)
def test_equals_transformers(oracle, config, encode, rows, columns):
    patches = random_grid(rows, columns)
    ours = encode(patches, rows, columns)
    assert np.isfinite(ours).all()
    expected = run_oracle(oracle, config, patches, rows, columns)
    np.testing.assert_allclose(ours[:, : rows * columns], expected, atol=1e-5)


@pytest.mark.parametrize("grid", [(9, 16), (6, 7)])
def test_grids_of_a_video_equal_transformers(oracle, config, encode, grid):
    grids = 3
    patches = random_grid(*grid, grids=grids)
    ours = [encode(p, *grid)[:, : grid[0] * grid[1]] for p in np.split(patches, grids)]
    expected = run_oracle(oracle, config, patches, *grid, grids=grids)
    np.testing.assert_allclose(np.concatenate(ours, axis=1), expected, atol=1e-5)


# Fewer slots than one window holds; and a number that is no multiple of it, two blocks of three.
@pytest.mark.parametrize(
    ("slots", "grid"),
    [
        pytest.param(10, (2, 4), marks=pytest.mark.slow),
        (21, (5, 4)),
        pytest.param(39, (3, 13), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("config", [CONFIG], indirect=True, ids=["qwen2_5"])
def test_any_number_of_slots(oracle, config, params, slots, grid):
    patches = random_grid(*grid)
    ours, *_ = jax.jit(encoder(config).apply)(params, in_slots(patches, slots), jnp.array(grid))
    assert ours.shape == (slots, config.output)
    (expected,) = run_oracle(oracle, config, patches, *grid)
    np.testing.assert_allclose(ours[: len(expected)], expected, atol=1e-5)


@pytest.fixture(scope="module")
def encode_with_attention(config, params):
    return jax.jit(lambda *grid: encoder(config).apply(params, *grid, attention=True))


def received_in(oracle, config, monkeypatch, patches, rows, columns):
    """Attention received and keys in transformers' last full attention, by token."""
    networks = of_family(config)[1]
    windowed = hasattr(config, "full_attention_layers")
    last, seen = oracle.blocks[max(config.full_attention_layers) if windowed else -1].attn, []
    forward = networks.eager_attention_forward

    def listen(module, query, key, *arguments, **settings):
        out, weights = forward(module, query, key, *arguments, **settings)
        if module is last:
            seen.append((weights[0].double().numpy(), key[0].double().numpy()))
        return out, weights

    monkeypatch.setattr(networks, "eager_attention_forward", listen)
    run_oracle(oracle, config, patches, rows, columns)
    ((weights, keys),) = seen  # [heads, patches, patches], [heads, patches, size]
    side = CONFIG.window // (CONFIG.patch * CONFIG.merge)
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    by_window = sorted(cells, key=lambda cell: (cell[0] // side, cell[1] // side, *cell))
    place = [(by_window if windowed else cells).index(cell) for cell in cells]

    def tokens(of_patches):
        return of_patches.reshape(len(cells), CONFIG.merge**2, -1).mean(1)[place]

    return tokens(weights.mean(0).sum(0))[:, 0], tokens(keys.mean(0))


@pytest.mark.parametrize(("rows", "columns"), [(9, 16), (3, 5)])
def test_attention_received_in_the_last_full_attention(
    oracle, config, encode, encode_with_attention, monkeypatch, rows, columns
):
    patches = random_grid(rows, columns)
    tokens, _, vision = encode_with_attention(in_slots(patches), jnp.array([rows, columns]))
    np.testing.assert_allclose(tokens, encode(patches, rows, columns)[0], atol=1e-5)
    received, keys = received_in(oracle, config, monkeypatch, patches, rows, columns)
    count = rows * columns
    np.testing.assert_allclose(vision.received[:count], received, atol=1e-4)
    np.testing.assert_allclose(vision.keys[:count], keys, atol=1e-4)
    assert not np.any(vision.received[count:])
    # Each patch distributes 1; a token is the mean of its four.
    assert abs(np.sum(vision.received) - count) < 1e-3 * count


def test_no_more_than_one_head_s_attention_is_added(config, params):
    def sizes(attention):
        def run(patches, size):
            return encoder(config).apply(params, patches, size, attention=attention)

        text = str(jax.make_jaxpr(run)(in_slots(random_grid(2, 2)), jnp.array([2, 2])))
        shapes = re.findall(r"f32\[([\d,]+)\]", text)
        return {int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes}

    assert max(sizes(True) - sizes(False)) == (SLOTS * CONFIG.merge**2) ** 2


def test_a_grid_that_does_not_exist_is_finite(encode):
    assert np.isfinite(encode(random_grid(0, 0), 0, 0)).all()


@pytest.mark.slow  # tests/test_gpu_path.py compares both over windows
def test_vmap_and_map_equal_single_grids(config, params, encode):
    grids = [(9, 16), (3, 5), (0, 0)]

    def one(grid):
        return encoder(config).apply(params, *grid)[0]

    batch = (jnp.stack([in_slots(random_grid(*grid)) for grid in grids]), jnp.array(grids))
    expected = np.stack([encode(random_grid(*grid), *grid)[0] for grid in grids])
    for batched in (jax.jit(jax.vmap(one))(batch), jax.jit(lambda b: jax.lax.map(one, b))(batch)):
        np.testing.assert_allclose(batched, expected, atol=1e-5)


# Mean and deviation per channel, from the released preprocessor_config.json.
@pytest.mark.parametrize(
    ("own", "mean", "std"),
    [
        (
            vision,
            [0.48145466, 0.4578275, 0.40821073],
            [0.26862954, 0.26130258, 0.27577711],
        ),
        (vision3, [0.5] * 3, [0.5] * 3),
    ],
)
def test_pixels_are_normalised_as_by_the_image_processor(own, mean, std):
    mean, std = (np.array(x).repeat(CONFIG.patch_values // 3) for x in (mean, std))
    patches = random_grid(2, 2)
    ours = normalise(jnp.asarray(patches), own.PIXEL_MEAN, own.PIXEL_STD)
    np.testing.assert_allclose(ours, (patches / 255 - mean) / std, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16(config, params, encode):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    patches = random_grid(9, 16)
    apply = encoder(config, dtype=jnp.bfloat16).apply
    out, *_ = jax.jit(apply)(params, patches, jnp.array([9, 16]))
    expected = encode(patches, 9, 16)[0]
    assert out.dtype == jnp.bfloat16
    error = np.abs(np.asarray(out, np.float32) - expected)
    assert error.max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("released", "count"),
    [
        (RELEASED, 668_684_288),
        (dataclasses.replace(RELEASED, output=3584), 676_550_144),
        (RELEASED_3, 538_631_408),
    ],
)
def test_parameter_count_as_released(released, count):
    patches = jax.ShapeDtypeStruct((576, released.patch_values), jnp.uint8)
    params = jax.eval_shape(encoder(released).init, jax.random.key(0), patches, jnp.array([9, 16]))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("shape", [(575, 24), (576, 12), (2, 576, 24)])
def test_wrong_shape_is_refused(config, params, shape, unchecked):
    with pytest.raises(ValueError, match="patches of one grid"):
        encoder(config).apply(params, jnp.zeros(shape, jnp.uint8), jnp.array([1, 1]))
