"""What tests of commands share."""

import pytest


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch):
    """The tests leave the user's cache alone."""
    monkeypatch.setattr("omnizip_jax.cli.model_setup.enable_compilation_cache", lambda: None)
