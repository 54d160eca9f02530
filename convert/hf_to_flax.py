"""Convert released Qwen2.5-Omni weights: ``python convert/hf_to_flax.py SOURCE_DIR TARGET_DIR``."""

from omnizip_jax.checkpoint.convert import main
from omnizip_jax.cli.main import run_process

if __name__ == "__main__":
    run_process(main)
