"""The vision encoder against transformers' Qwen2_5OmniVisionEncoder, float32."""

from __future__ import annotations

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as networks

from omnizip_jax.models.encoder_layers import normalise
from omnizip_jax.models.qwen2_5_omni.config import VisionConfig
from omnizip_jax.models.qwen2_5_omni.vision import PIXEL_MEAN, PIXEL_STD, VisionEncoder
from tests.models import hf
from tests.models.hf import to_flax

# 4 x 4 tokens of 2 x 2 patches in a window, and 144 slots, as released.
CONFIG = VisionConfig(
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
SLOTS = 144


@pytest.fixture(scope="module")
def oracle():
    return hf.oracle(CONFIG)


@pytest.fixture(scope="module")
def encode(oracle):
    """Encode one grid; fails if any test makes it trace a second time."""
    params = {"params": to_flax(oracle.state_dict())}
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def one(patches, grid_size):
        return VisionEncoder(CONFIG).apply(params, patches, grid_size)[0]

    return lambda patches, rows, columns: np.asarray(
        one(in_slots(patches), jnp.array([rows, columns]))
    )


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


def run_oracle(oracle, patches, rows, columns, grids=1):
    pixels = torch.from_numpy(np.array(normalise(jnp.asarray(patches), PIXEL_MEAN, PIXEL_STD)))
    size = torch.tensor([[grids, rows * CONFIG.merge, columns * CONFIG.merge]])
    with torch.no_grad():
        return oracle(pixels, grid_thw=size).pooler_output.numpy()


# Whole windows, partial ones at either edge, single rows and columns, up to all the slots.
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(12, 12), (9, 16), (16, 9), (8, 4), (3, 5), (5, 3), (1, 7), (1, 144), (144, 1), (1, 1)],
)
def test_equals_transformers(oracle, encode, rows, columns):
    patches = random_grid(rows, columns)
    ours = encode(patches, rows, columns)
    assert np.isfinite(ours).all()
    expected = run_oracle(oracle, patches, rows, columns)
    np.testing.assert_allclose(ours[: rows * columns], expected, atol=1e-5)


@pytest.mark.parametrize("grid", [(9, 16), (6, 7)])
def test_grids_of_a_video_equal_transformers(oracle, encode, grid):
    grids = 3
    patches = random_grid(*grid, grids=grids)
    ours = [encode(p, *grid)[: grid[0] * grid[1]] for p in np.split(patches, grids)]
    expected = run_oracle(oracle, patches, *grid, grids=grids)
    np.testing.assert_allclose(np.concatenate(ours), expected, atol=1e-5)


# Fewer slots than one window holds; and a number that is no multiple of it, two blocks of three.
@pytest.mark.parametrize(
    ("slots", "grid"),
    [
        pytest.param(10, (2, 4), marks=pytest.mark.slow),
        (21, (5, 4)),
        pytest.param(39, (3, 13), marks=pytest.mark.slow),
    ],
)
def test_any_number_of_slots(oracle, slots, grid):
    patches = random_grid(*grid)
    params = {"params": to_flax(oracle.state_dict())}
    encode = jax.jit(VisionEncoder(CONFIG).apply)
    ours, _ = encode(params, in_slots(patches, slots), jnp.array(grid))
    assert ours.shape == (slots, CONFIG.output)
    expected = run_oracle(oracle, patches, *grid)
    np.testing.assert_allclose(ours[: len(expected)], expected, atol=1e-5)


@pytest.fixture(scope="module")
def encode_with_attention(oracle):
    params = {"params": to_flax(oracle.state_dict())}
    return jax.jit(lambda *grid: VisionEncoder(CONFIG).apply(params, *grid, attention=True))


def received_in(oracle, monkeypatch, patches, rows, columns):
    """Attention received and keys in transformers' last full attention, by token."""
    last, seen = oracle.blocks[max(CONFIG.full_attention_layers)].attn, []
    forward = networks.eager_attention_forward

    def listen(module, query, key, *arguments, **settings):
        out, weights = forward(module, query, key, *arguments, **settings)
        if module is last:
            seen.append((weights[0].double().numpy(), key[0].double().numpy()))
        return out, weights

    monkeypatch.setattr(networks, "eager_attention_forward", listen)
    run_oracle(oracle, patches, rows, columns)
    ((weights, keys),) = seen  # [heads, patches, patches], [heads, patches, size]
    side = CONFIG.window // (CONFIG.patch * CONFIG.merge)
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    by_window = sorted(cells, key=lambda cell: (cell[0] // side, cell[1] // side, *cell))
    place = [by_window.index(cell) for cell in cells]

    def tokens(of_patches):
        return of_patches.reshape(len(cells), CONFIG.merge**2, -1).mean(1)[place]

    return tokens(weights.mean(0).sum(0))[:, 0], tokens(keys.mean(0))


@pytest.mark.parametrize(("rows", "columns"), [(9, 16), (3, 5)])
def test_attention_received_in_the_last_full_attention(
    oracle, encode, encode_with_attention, monkeypatch, rows, columns
):
    patches = random_grid(rows, columns)
    tokens, vision = encode_with_attention(in_slots(patches), jnp.array([rows, columns]))
    np.testing.assert_allclose(tokens, encode(patches, rows, columns), atol=1e-5)
    received, keys = received_in(oracle, monkeypatch, patches, rows, columns)
    count = rows * columns
    np.testing.assert_allclose(vision.received[:count], received, atol=1e-4)
    np.testing.assert_allclose(vision.keys[:count], keys, atol=1e-4)
    assert not np.any(vision.received[count:])
    # Each patch distributes 1; a token is the mean of its four.
    assert abs(np.sum(vision.received) - count) < 1e-3 * count


def test_no_more_than_one_head_s_attention_is_added(oracle):
    params = {"params": to_flax(oracle.state_dict())}

    def sizes(attention):
        def run(patches, size):
            return VisionEncoder(CONFIG).apply(params, patches, size, attention=attention)

        text = str(jax.make_jaxpr(run)(in_slots(random_grid(2, 2)), jnp.array([2, 2])))
        shapes = re.findall(r"f32\[([\d,]+)\]", text)
        return {int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes}

    assert max(sizes(True) - sizes(False)) == (SLOTS * CONFIG.merge**2) ** 2


def test_a_grid_that_does_not_exist_is_finite(encode):
    assert np.isfinite(encode(random_grid(0, 0), 0, 0)).all()


@pytest.mark.slow  # tests/test_gpu_path.py compares both over windows
def test_vmap_and_map_equal_single_grids(oracle, encode):
    grids = [(9, 16), (3, 5), (0, 0)]
    params = {"params": to_flax(oracle.state_dict())}

    def one(grid):
        return VisionEncoder(CONFIG).apply(params, *grid)[0]

    batch = (jnp.stack([in_slots(random_grid(*grid)) for grid in grids]), jnp.array(grids))
    expected = np.stack([encode(random_grid(*grid), *grid) for grid in grids])
    for batched in (jax.jit(jax.vmap(one))(batch), jax.jit(lambda b: jax.lax.map(one, b))(batch)):
        np.testing.assert_allclose(batched, expected, atol=1e-5)


def test_pixels_are_normalised_as_by_the_image_processor():
    # Mean and deviation per channel, from the released preprocessor_config.json.
    mean = np.array([0.48145466, 0.4578275, 0.40821073]).repeat(CONFIG.patch_values // 3)
    std = np.array([0.26862954, 0.26130258, 0.27577711]).repeat(CONFIG.patch_values // 3)
    patches = random_grid(2, 2)
    expected = (patches / 255 - mean) / std
    ours = normalise(jnp.asarray(patches), PIXEL_MEAN, PIXEL_STD)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16(oracle, encode):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), to_flax(oracle.state_dict()))
    patches = random_grid(9, 16)
    encoder = VisionEncoder(CONFIG, dtype=jnp.bfloat16)
    out, _ = jax.jit(encoder.apply)({"params": params}, patches, jnp.array([9, 16]))
    expected = encode(patches, 9, 16)
    assert out.dtype == jnp.bfloat16
    error = np.abs(np.asarray(out, np.float32) - expected)
    assert error.max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(("output", "released"), [(2048, 668_684_288), (3584, 676_550_144)])
def test_parameter_count_as_released(output, released):
    config = VisionConfig(
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
        output=output,
    )
    patches = jax.ShapeDtypeStruct((576, config.patch_values), jnp.uint8)
    params = jax.eval_shape(
        VisionEncoder(config).init, jax.random.key(0), patches, jnp.array([9, 16])
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == released


@pytest.mark.parametrize("shape", [(575, 24), (576, 12), (2, 576, 24)])
def test_wrong_shape_is_refused(oracle, shape, unchecked):
    params = {"params": to_flax(oracle.state_dict())}
    with pytest.raises(ValueError, match="patches of one grid"):
        VisionEncoder(CONFIG).apply(params, jnp.zeros(shape, jnp.uint8), jnp.array([1, 1]))
