"""Convert released Qwen2.5-Omni weights: ``python convert/hf_to_flax.py SOURCE_DIR TARGET_DIR``."""

import sys

from omnizip_jax.checkpoint.convert import main

if __name__ == "__main__":
    sys.exit(main())
