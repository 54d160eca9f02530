"""Convert released Qwen-Omni weights: ``python convert/hf_to_flax.py SOURCE_DIR TARGET_DIR``."""

import sys

from omnizip_jax.cli.main import main, run_process

if __name__ == "__main__":
    run_process(lambda: main(["convert", *sys.argv[1:]]))
