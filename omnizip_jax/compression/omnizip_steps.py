"""Settings and steps that the paper's rule and the authors' code share.

Only two steps use the whole clip, the ranking of the audio tokens and the video budget; under the
paper's rule every other step uses one window.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Bool, Float, PRNGKeyArray

from omnizip_jax.compression.method import Budget, Method, check_shares
from omnizip_jax.compression.omnizip_audio import attention_scores
from omnizip_jax.types import EncodedWindow, Selection, WindowTokens
from omnizip_jax.window_spec import check_positive


@dataclasses.dataclass(frozen=True)
class OmniZipSettings(Method):
    """The paper's symbols, and the two steps of ``compress_clip`` in which rules differ.

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
        check_shares(self, "rho_audio", "rho_video", "rho_min", "rho_max", "anchor_ratio")
        if self.rho_min > self.rho_max:
            raise ValueError(f"rho_min {self.rho_min} exceeds rho_max {self.rho_max}")
        check_positive(self, "knn")
        if self.merge_size < 0:
            raise ValueError(f"merge_size must be at least 0, got {self.merge_size}")

    def select(self, windows: EncodedWindow, budget: Budget, key: PRNGKeyArray) -> Selection:
        return compress_clip(with_scores(windows), budget, self)

    def compress_audio(
        self, tokens: WindowTokens, budget: Budget
    ) -> tuple[Float[Array, "W A D"], Bool[Array, "W A"], Bool[Array, "W A"]]:
        """The audio with merged anchors, the salient tokens, and the anchors."""
        raise NotImplementedError

    def compress_video(
        self, tokens: WindowTokens, budget: Budget, audio_keep: Bool[Array, "W A"]
    ) -> Bool[Array, "W G P"]:
        """The kept video tokens."""
        raise NotImplementedError


def with_scores(windows: EncodedWindow, block: int | None = None) -> WindowTokens:
    """The tokens of a clip with the audio scores of eq. 2; ``block`` as in ``attention_scores``."""
    audio = windows.audio
    frames = audio.queries, audio.keys, audio.frame_mask
    scores = attention_scores(*frames, audio.token_mask.shape[-1], block)
    return WindowTokens(audio.tokens, scores, audio.token_mask, windows.video, windows.video_mask)


def compress_clip(tokens: WindowTokens, budget: Budget, config: OmniZipSettings) -> Selection:
    """Compress a clip of W windows; pure, of static shape, jittable with ``config`` static.

    1. Audio token selection over the clip: the tokens with the highest scores are salient.
    2. Audio anchor consolidation (eq. 3-4).
    3. Retention S_a of each window, anchors included.
    4. Video budget over the clip (eq. 5 and Algorithm 1).
    5. ISTC inside each window (``istc``): eq. 6-8.

    Raises:
        ValueError: the arrays of ``tokens`` do not belong together.
    """
    check_tokens(tokens)
    audio, salient, anchors = config.compress_audio(tokens, budget)
    keep = salient | anchors, config.compress_video(tokens, budget, salient | anchors)
    masks = tokens.audio_mask, tokens.video_mask
    return Selection.of(*masks, *keep, audio=audio, audio_salient=salient)


def check_tokens(tokens: WindowTokens) -> None:
    """Raise ``ValueError`` unless the shapes are those of one clip."""
    audio, video = tokens.audio.shape, tokens.video.shape
    shapes = {
        "audio_scores": audio[:-1],
        "audio_mask": audio[:-1],
        "video": (*audio[:1], *video[1:3], audio[-1]),
        "video_mask": (*audio[:1], *video[1:3]),
    }
    wrong = [
        f"; tokens.{name} should have the shape {shape}, got {getattr(tokens, name).shape}"
        for name, shape in shapes.items()
        if getattr(tokens, name).shape != shape
    ]
    if wrong or len(audio) != 3 or len(video) != 4:
        raise ValueError(
            "compress_clip takes audio [W, A, D] and video [W, G, P, D] with a leading axis of "
            f"windows on every leaf (add one for a single window), got {audio} and {video}"
            + "".join(wrong)
        )
