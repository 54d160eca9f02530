"""State of a benchmark run: preset, machine, weights made on demand, rows with goals."""

from __future__ import annotations

import functools
from typing import Any

import jax
from rich.console import Console

from benchmarks import goals, presets
from benchmarks.harness import MOST_ROUNDS, Call, Row, Timing, alternate
from benchmarks.machine import Machine, import_torch, measure

SHORT = 6.0  # seconds of all rounds of short calls


class Bench:
    """One run of one or more suites."""

    def __init__(
        self,
        preset: str,
        windows: int | None = None,
        repeats: int = 5,
        console: Console | None = None,
    ):
        self.name = preset
        self.preset = presets.PRESETS[preset]
        self.config = self.preset.model
        self._windows = windows
        self.repeats = repeats
        self.dtype = presets.default_dtype()
        self.console = console or Console()

    @property
    def windows(self) -> int:
        """Windows of a clip for the networks."""
        return self._windows or self.preset.windows

    @property
    def compression_windows(self) -> int:
        """Windows of a clip for the compression only."""
        return self._windows or self.preset.compression_windows

    @functools.cached_property
    def machine(self) -> Machine:
        return measure(self.dtype, quick=self.name == "tiny")

    @functools.cached_property
    def weights(self) -> Any:
        return jax.block_until_ready(presets.random_weights(self.config, self.dtype))

    @functools.cached_property
    def has_torch(self) -> bool:
        return import_torch() is not None

    @property
    def has_model_peer(self) -> bool:
        """Whether transformers' Qwen2.5-Omni can have the same weights."""
        return self.has_torch and not self.config.text.experts

    def say(self, text: str) -> None:
        """Print a progress line."""
        self.console.print(f"[dim]{text}[/]", highlight=False)

    @property
    def most_rounds(self) -> int:
        """Largest number of rounds of ``alternate``, the warm-up included."""
        return 1 + max(self.repeats, MOST_ROUNDS)

    def alternate(self, *calls: Call) -> list[Timing]:
        return alternate(*calls, repeats=self.repeats, seconds=SHORT)

    def goal(self, name: str) -> goals.Goal | None:
        """Goal of a row; goals apply to some presets on each kind of device."""
        on_gpu = jax.default_backend() == "gpu"
        if on_gpu:
            return goals.GPU.get(name) if self.name == "7b" else None
        return goals.CPU_PRESETS.get(self.name, {}).get(name)

    def timed(self, name: str, *args: Any, **rest: Any) -> Row:
        return Row.timed(name, *args, goal=self.goal(name), **rest)

    def figure(self, name: str, value: float, unit: str, **rest: Any) -> Row:
        return Row(name, value, unit, goal=self.goal(name), **rest)
