"""The tests. In the full tier, importing them installs the check of array annotations.

``pytest -m slow`` installs it before the package is imported, OMNIZIP_CHECK_SHAPES=1 in every run.
"""

import os
import sys
from pathlib import Path

from jaxtyping import install_import_hook

if ("-m", "slow") in zip(sys.argv, sys.argv[1:], strict=False):
    os.environ["OMNIZIP_CHECK_SHAPES"] = "1"  # worker processes inherit it

if os.environ.get("OMNIZIP_CHECK_SHAPES") == "1":
    from tests import shapes

    # All except media: it validates the user's arrays itself, partly in threads that a test would
    # wait for without end.
    install_import_hook(
        sorted(
            f"omnizip_jax.{path.stem}"
            for path in (Path(__file__).parents[1] / "omnizip_jax").iterdir()
            if path.stem not in ("media", "__init__", "__pycache__")
        ),
        f"{shapes.__name__}.{shapes.arrays.__name__}",
    )
