"""In the full tier, functions of the package refuse arrays that contradict their annotations."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from omnizip_jax.compression.omnizip_video import squared_distances
from omnizip_jax.inference.chat_template import Text
from omnizip_jax.inference.sequence import pad_text
from omnizip_jax.media.pixels import fit_grid
from omnizip_jax.types import Window
from omnizip_jax.window_spec import WindowSpec

pytestmark = pytest.mark.slow  # as the check itself (tests/__init__.py)

GRID, MASK = jnp.ones((3, 4)), jnp.ones(3, bool)


@pytest.mark.parametrize(
    "transformed", [lambda f: f, jax.jit, jax.vmap], ids=["as is", "jit", "vmap"]
)
@pytest.mark.parametrize(
    ("grid", "mask"),
    [(GRID, MASK[:2]), (GRID[0], MASK), (GRID, MASK.astype(jnp.int32)), (GRID.astype(int), MASK)],
    ids=["length", "axes", "mask's type", "grid's type"],
)
def test_wrong_arrays_are_refused(transformed, grid, mask):
    if transformed is jax.vmap:
        grid, mask = grid[None], mask[None]
    with pytest.raises(TypeCheckError):
        transformed(squared_distances)(grid, mask)


def test_numpy_may_go_to_the_device_but_not_the_other_way():
    grid = np.ones((3, 4), np.float32)
    assert not np.any(squared_distances(grid, np.ones(3, bool)))
    with pytest.raises(TypeCheckError):
        squared_distances(grid, np.ones(4, bool))
    with pytest.raises(TypeCheckError):
        pad_text(jnp.ones(3, jnp.int32))


def test_dataclasses_are_checked_and_pytrees_hold_anything():
    with pytest.raises(TypeCheckError):
        Text(np.ones(3, np.int32), np.ones(4, np.int32))
    window = Window.empty(WindowSpec())
    assert jax.tree.map(lambda x: None, window).mel is None
    assert jax.eval_shape(lambda w: w, window).mel.shape == (128, 200)


def test_other_types_are_left_alone():
    assert fit_grid(height=36, width=64, slots=16) == fit_grid(36.0, 64.0, 16)


def test_it_can_be_turned_off(unchecked):
    with pytest.raises(TypeError, match="contracting dimensions"):
        squared_distances(GRID, MASK[:2])


def test_all_files_are_checked():
    ours = {name: m for name, m in sys.modules.items() if name.startswith("omnizip_jax.")}
    loaders = {
        name: type(module.__spec__.loader).__name__
        for name, module in ours.items()
        if not name.startswith("omnizip_jax.media")
    }
    assert len(loaders) > 20 and set(loaders.values()) == {"_JaxtypingLoader"}, loaders
