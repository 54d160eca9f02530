"""Frozen settings: the shape of a window, and the compression rule.

All are hashable dataclasses, so that they can be static arguments of ``jax.jit``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class WindowSpec:
    """The fixed shape of one window: what every clip and every stream is cut into.

    ``grid_slots`` bounds the tokens of one temporal grid (two frames); pictures are resized to
    fit. 16:9 pictures use all 144 of the default (448 x 252 pixels). The shape belongs to a
    checkpoint: ``params.config.spec``.

    Args:
        seconds: length of a window.
        audio_slots: audio tokens in a window.
        grids, grid_slots: grids in a window, and tokens in a grid.
        patch: pixels along a patch's side.
        merge: patches along a token's side.
        temporal_patch: frames in a grid.
        mel_bins: bands of the log-mel spectrogram.

    Raises:
        ValueError: a field that is not a positive integer.
    """

    seconds: int = 2
    audio_slots: int = 50
    grids: int = 2
    grid_slots: int = 144
    patch: int = 14
    merge: int = 2
    temporal_patch: int = 2
    mel_bins: int = 128

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"WindowSpec.{field.name} must be a positive integer, got {value!r}"
                )

    @property
    def video_slots(self) -> int:
        return self.grids * self.grid_slots

    @property
    def slots(self) -> int:
        """Tokens that one window can hold: video, then audio."""
        return self.video_slots + self.audio_slots

    @property
    def frames(self) -> int:
        """Pictures in a window."""
        return self.grids * self.temporal_patch

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Patches of a grid, and values of a patch: channel, frame, row, column."""
        return self.grid_slots * self.merge**2, 3 * self.temporal_patch * self.patch**2

    @property
    def mel_frames(self) -> int:
        """Mel frames in a window, 100 a second."""
        return 100 * self.seconds

    @property
    def positions(self) -> int:
        """Position ids in a window, 25 a second."""
        return 25 * self.seconds


@dataclasses.dataclass(frozen=True)
class OmniZipConfig:
    """The compression rule and its settings; the defaults keep 45 % of the tokens.

    Args:
        rho_audio: share of the audio tokens that is not salient (paper section 3.3).
        rho_video: share of the video tokens to discard over the whole clip.
        rho_min, rho_max: bounds of a window's video pruning rate (eq. 5).
        merge_size: G, the most tokens merged into one anchor; 0 means no anchors.
        anchor_ratio: anchors of a window as a share of its audio tokens.
        knn: neighbours in DPC-KNN (eq. 7).
        relative_distance: let DPC-KNN measure distances relative to the largest in the grid, so
            that the scale of the features does not matter; not in the paper (docs/accuracy.md).
        rule: "paper", or "published" for the rule of the authors' newest code.
        causal: plan window by window without looking ahead, as a stream must (docs/streaming.md).
        key_windows: causal audio scores look at the keys of so many past windows.
        threshold_windows: causal ranking looks at the scores of so many recent windows.

    Raises:
        ValueError: a setting outside its range, or a video budget that no rates inside the
            bounds can meet.
    """

    rho_audio: float = 0.3
    rho_video: float = 0.6
    rho_min: float = 0.35
    rho_max: float = 0.75
    merge_size: int = 3
    anchor_ratio: float = 0.05
    knn: int = 5
    relative_distance: bool = False
    rule: Literal["paper", "published"] = "paper"
    causal: bool = False
    key_windows: int = 32
    threshold_windows: int = 16

    def __post_init__(self):
        for name in ("rho_audio", "rho_video", "rho_min", "rho_max", "anchor_ratio"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"OmniZipConfig.{name} is a share between 0 and 1, got {value}")
        if self.rho_min > self.rho_max:
            raise ValueError(
                f"OmniZipConfig: rho_min {self.rho_min} exceeds rho_max {self.rho_max}"
            )
        if self.merge_size < 0 or self.knn < 1:
            raise ValueError(
                "OmniZipConfig: merge_size must be at least 0 and knn at least 1, "
                f"got {self.merge_size} and {self.knn}"
            )
        if self.rule not in ("paper", "published"):
            raise ValueError(
                f'OmniZipConfig.rule must be "paper" or "published", got {self.rule!r}'
            )
        if self.key_windows < 1 or self.threshold_windows < 1:
            raise ValueError(
                "OmniZipConfig: key_windows and threshold_windows must be at least 1, got "
                f"{self.key_windows} and {self.threshold_windows}"
            )
        if self.relative_distance and self.rule != "paper":
            raise ValueError(
                "the published rule measures 1 - cosine: relative_distance goes with the paper's"
            )
        if self.causal and self.rule != "paper":
            raise ValueError(
                "the published rule needs the whole clip: causal goes with the paper's"
            )
        # The published rule lets the budget slip; the paper's meets it, so it must be in reach.
        if self.rule == "paper" and self.rho_video > self.rho_max:
            raise ValueError(
                f"no rates inside the bounds can discard {self.rho_video:.0%} of the video: "
                f"raise rho_max (now {self.rho_max}) to at least {self.rho_video}"
            )
        if self.rule == "paper" and self.rho_video < self.rho_min:
            raise ValueError(
                f"no rates inside the bounds can discard only {self.rho_video:.0%} of the video: "
                f"lower rho_min (now {self.rho_min}) to at most {self.rho_video}"
            )

    @classmethod
    def published(cls, **settings: Any) -> OmniZipConfig:
        """The rule of the authors' newest code, quirks included, with the same settings."""
        return cls(rule="published", **settings)
