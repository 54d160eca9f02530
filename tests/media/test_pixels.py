"""Sizes, resizing and patches against transformers and by their properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omnizip_jax.media.pixels import fit_grid, patchify, resize, unpatchify

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def picture(height, width, seed=0):
    """Gradients, edges and a little noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = [x * 255 / width, y * 255 / height, 255 * ((x // 9 + y // 7) % 2)]
    noisy = np.stack(planes, axis=-1) + random.normal(0, 8, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def normalise(patches):
    """Patches of one image, doubled in time, as the image processor returns them."""
    pixels = patches.reshape(len(patches), 3, -1) / 255.0
    return ((pixels - MEAN[:, None]) / STD[:, None]).reshape(patches.shape)


@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    slots=st.integers(1, 400),
)
def test_grid_fits_and_keeps_the_aspect(height, width, slots):
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match="200:1"):
            fit_grid(height, width, slots)
        return
    rows, columns = fit_grid(height, width, slots)
    assert rows >= 1 and columns >= 1 and rows * columns <= slots
    assert fit_grid(3 * height, 3 * width, slots) == (rows, columns)
    # One side is within one cell of what the other asks for, unless the slots end before.
    if slots >= max(height, width) / min(height, width):
        off_columns = abs(columns - rows * width / height)
        off_rows = abs(rows - columns * height / width)
        assert min(off_columns, off_rows) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [
        (720, 1280, (9, 16)),  # 448 x 252 pixels, as the authors'
        (1080, 1920, (9, 16)),
        (9, 16, (9, 16)),
        (1280, 720, (16, 9)),
        (480, 640, (10, 14)),
        (800, 1280, (9, 15)),
        (500, 500, (12, 12)),
        (1, 100, (1, 100)),
        (2000, 10, (144, 1)),
    ],
)
def test_grids_of_common_sizes(height, width, grid):
    assert fit_grid(height, width, 144) == grid


@given(aspect=st.floats(0.25, 4.0))
def test_most_slots_are_used(aspect):
    rows, columns = fit_grid(1000, 1000 * aspect, 144)
    assert rows * columns >= 114


def test_patches_equal_the_image_processor():
    pixels = picture(112, 168)
    processor = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=2)
    expected = processor(pixels, do_resize=False, return_tensors="np")
    assert expected["image_grid_thw"].tolist() == [[1, 8, 12]]
    patches = patchify(np.stack([pixels, pixels]), 14, 2)
    np.testing.assert_allclose(normalise(patches), expected["pixel_values"], atol=2e-6)


def test_resize_and_patches_equal_the_image_processor():
    pixels = picture(233, 371)
    rows, columns = fit_grid(224, 364, 104)
    assert (rows, columns) == (8, 13)  # the processor's own choice below, so that both resize alike
    processor = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=2)
    expected = processor(pixels, return_tensors="np")
    assert expected["image_grid_thw"].tolist() == [[1, 16, 26]]
    small = resize(pixels, rows * 28, columns * 28)
    patches = patchify(np.stack([small, small]), 14, 2)
    np.testing.assert_allclose(normalise(patches), expected["pixel_values"], atol=2e-6)


def test_patch_order():
    """Value by value against loops that say what the order is."""
    patch, merge, rows, columns = 3, 2, 2, 3
    frames = np.random.default_rng(1).integers(0, 256, (2, 12, 18, 3)).astype(np.uint8)
    expected = [
        [
            frames[frame, (r * merge + i) * patch + y, (c * merge + j) * patch + x, channel]
            for channel in range(3)
            for frame in range(2)
            for y in range(patch)
            for x in range(patch)
        ]
        for r in range(rows)
        for c in range(columns)
        for i in range(merge)
        for j in range(merge)
    ]
    patches = patchify(frames, patch, merge)
    np.testing.assert_array_equal(patches, expected)
    padded = np.pad(patches, ((0, 8), (0, 0)))
    np.testing.assert_array_equal(unpatchify(padded, rows, columns, patch, merge), frames)
