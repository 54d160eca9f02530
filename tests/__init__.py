"""The tests. Importing them turns on the check of array annotations, before the package comes."""

from pathlib import Path

from jaxtyping import install_import_hook

from tests import shapes

# All but media: what comes there is the user's, and it refuses wrong arrays itself, some of them in
# threads of a test that would wait for ever.
ROOMS = sorted(
    f"omnizip_jax.{path.stem}"
    for path in (Path(__file__).parents[1] / "omnizip_jax").iterdir()
    if path.stem not in ("media", "__init__", "__pycache__")
)

install_import_hook(ROOMS, f"{shapes.__name__}.{shapes.arrays.__name__}")
