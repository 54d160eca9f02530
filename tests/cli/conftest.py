"""Fixtures of the commands' tests: a stub for the model."""

import dataclasses

import pytest

from omnizip_jax.compression import AllTokens
from omnizip_jax.evaluation.decoder_cost import without_compression
from tests.sample_answer import make_answer


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch):
    """The tests do not write to the user's cache."""
    monkeypatch.setattr("omnizip_jax.cli.model_setup.enable_compilation_cache", lambda: None)


@pytest.fixture
def stub_generate(tiny, monkeypatch):
    """Replaces ``load`` and ``generate`` of the commands; returns the calls of ``generate``."""
    calls, answer = [], make_answer()

    def generate(params, clip, question, **settings):
        assert params is tiny
        calls.append((clip, question, settings))
        settings.get("on_text", str)(answer.text)
        if settings["compression"] == AllTokens():
            return dataclasses.replace(answer, counts=without_compression(answer.counts))
        return answer

    monkeypatch.setattr("omnizip_jax.cli.model_setup.load", lambda *_, **__: tiny)
    monkeypatch.setattr("omnizip_jax.cli.clip_commands.generate", generate)
    return calls
