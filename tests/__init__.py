"""The tests. Importing them turns on the check of array annotations, before the package comes."""

from jaxtyping import install_import_hook

from tests import shapes

install_import_hook("omnizip_jax", f"{shapes.__name__}.{shapes.arrays.__name__}")
