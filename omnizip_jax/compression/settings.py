"""The paper's symbols: what both rules are set by, and what the paper's has on top."""

from __future__ import annotations

import dataclasses

from omnizip_jax.compression.method import Method, check_share
from omnizip_jax.compression.share import Share


@dataclasses.dataclass(frozen=True)
class Settings(Method):
    """What the paper's rule and the authors' code have in common.

    Args:
        rho_audio: share of the audio tokens that is not salient (paper section 3.3).
        rho_video: share of the video tokens to discard over the whole clip.
        rho_min, rho_max: bounds of a window's video pruning rate (eq. 5).
        merge_size: G, the most tokens merged into one anchor; 0 means no anchors.
        anchor_ratio: anchors of a window as a share of its audio tokens.
        knn: neighbours in DPC-KNN (eq. 7).

    Raises:
        ValueError: a setting of the wrong type or outside its range.
    """

    rho_audio: float = 0.3
    rho_video: float = 0.6
    rho_min: float = 0.35
    rho_max: float = 0.75
    merge_size: int = 3
    anchor_ratio: float = 0.05
    knn: int = 5

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        for share in ("rho_audio", "rho_video", "rho_min", "rho_max", "anchor_ratio"):
            check_share(f"{name}.{share}", getattr(self, share))
        if self.rho_min > self.rho_max:
            raise ValueError(f"{name}: rho_min {self.rho_min} exceeds rho_max {self.rho_max}")
        if self.merge_size < 0 or self.knn < 1:
            raise ValueError(
                f"{name}: merge_size must be at least 0 and knn at least 1, "
                f"got {self.merge_size} and {self.knn}"
            )


@dataclasses.dataclass(frozen=True)
class PaperSettings(Settings, Share):
    """What the paper's rule has on top.

    Args:
        relative_distance: let DPC-KNN measure distances relative to the largest in the grid, so
            that the scale of the features does not matter (docs/accuracy.md); the paper does not.
        key_windows: causal audio scores look at the keys of so many past windows.
        threshold_windows: causal ranking looks at the scores of so many recent windows.
    """

    relative_distance: bool = True
    key_windows: int = 32
    threshold_windows: int = 16

    def __post_init__(self):
        super().__post_init__()
        if self.key_windows < 1 or self.threshold_windows < 1:
            raise ValueError(
                f"{type(self).__name__}: key_windows and threshold_windows must be at least 1, got "
                f"{self.key_windows} and {self.threshold_windows}"
            )
