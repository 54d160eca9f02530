"""The state of a stream, what it was begun with, and what may be done with it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from omnizip_jax.compression import CausalPlan, CompressedClip
from omnizip_jax.config import OmniZipConfig, WindowSpec
from omnizip_jax.memory import Memory, Slots
from omnizip_jax.models.kernels import Kernels
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.text import KVCache
from omnizip_jax.types import Window

if TYPE_CHECKING:
    from omnizip_jax.models.params import Params


@dataclasses.dataclass(frozen=True)
class StreamSettings:
    """What a stream was begun with; static, and the same for all its life."""

    model: ModelConfig
    weights: tuple[float, ...]  # a few numbers that tell one model's weights from another's
    compression: OmniZipConfig | None
    spec: WindowSpec
    audio: bool
    memory: Memory
    low_water: int
    text_slots: int
    system: str
    kernels: Kernels

    @property
    def start_tokens(self) -> tuple[int, ...]:
        """What opens a video; all at one position."""
        model = self.model
        return (model.vision_start_token, model.audio_start_token)[: 1 + self.audio]

    @property
    def block(self) -> int:
        """Static slots of one window's packed block: the most that may be kept of it."""
        spec = self.spec
        video = spec.video_slots
        if self.compression is not None:
            video -= int(self.compression.rho_min * video)
        return len(self.start_tokens) + spec.audio_slots * self.audio + video


class StreamState(struct.PyTreeNode):
    """All that a stream is: hand it from call to call.

    Attributes:
        cache: keys and values of everything remembered.
        slots: what each slot of the cache belongs to.
        plan: the causal plan of the compression.
        origin: position right after the prompt's prefix.
        time: position at which the next window (or the next video) begins.
        base: position from which rows and columns of the current video count.
        after: position of a text that would follow now.
        unit: number of the next unit of the cache.
        in_video: a video is open; the next text closes it.
        seen, kept: audio and video tokens, from the beginning.
        trace: what compression did with the last window.
        settings: static.
    """

    cache: KVCache
    slots: Slots
    plan: CausalPlan
    origin: Int[Array, ""]
    time: Int[Array, ""]
    base: Int[Array, ""]
    after: Int[Array, ""]
    unit: Int[Array, ""]
    in_video: Bool[Array, ""]
    seen: Int[Array, " 2"]
    kept: Int[Array, " 2"]
    trace: CompressedClip
    settings: StreamSettings = struct.field(pytree_node=False)

    @property
    def fill(self) -> float:
        """Share of the cache in use."""
        return int(self.cache.length) / self.slots.unit.shape[0]


def fingerprint(params: Params) -> tuple[float, ...]:
    """A few of the weights, by which a state knows the model that it belongs to."""
    return tuple(np.asarray(params.weights["text"]["norm"]["scale"][:8], np.float32).tolist())


def check_state(params: Params, state: StreamState) -> None:
    settings = state.settings
    if params.config != settings.model or fingerprint(params) != settings.weights:
        raise ValueError(
            "this stream was begun with another model: use the params that init_stream got, or "
            "begin a new stream"
        )
    if state.cache.keys.is_deleted():
        raise ValueError(
            "this state was used up by an earlier feed or ask: go on with the state that it "
            "returned"
        )


def check_window(window: Window, settings: StreamSettings) -> None:
    spec, model = settings.spec, settings.model
    vision, audio = model.vision, model.audio
    patches = spec.grid_slots * vision.merge**2
    expected = {
        "patches": ((spec.grids, patches, vision.patch_values), np.uint8),
        "grid_size": ((2,), np.integer),
        "grid_mask": ((spec.grids,), np.bool_),
        "grid_time": ((spec.grids,), np.integer),
        "mel": ((audio.mel_bins, 2 * audio.n_window), np.floating),
        "mel_length": ((), np.integer),
    }
    for name, (shape, dtype) in expected.items():
        value = getattr(window, name)
        found, kind = np.shape(value), np.asarray(value).dtype
        if found != shape or not np.issubdtype(kind, dtype):
            raise ValueError(
                f"window.{name} should be {dtype.__name__} of "
                f"shape {shape}, got {kind} of {found}; feed takes one window at a time, as "
                "omnizip_jax.windows makes them"
            )
    if not np.isfinite(np.asarray(window.mel)).all():
        raise ValueError(
            "window.mel has NaN or infinite values: check the sound that it was made of"
        )
    rows, columns = np.asarray(window.grid_size)
    if rows * columns > spec.grid_slots:
        raise ValueError(
            f"window.grid_size {rows} x {columns} exceeds the {spec.grid_slots} slots of a grid: "
            "resize the picture, or begin the stream with a larger WindowSpec.grid_slots"
        )
