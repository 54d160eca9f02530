"""``python -m omnizip_jax`` is the ``omnizip`` command."""

from omnizip_jax.cli.process import main

if __name__ == "__main__":
    main()
