"""``python -m omnizip_jax`` is the ``omnizip`` command."""

from omnizip_jax.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
