"""Pytrees shared by all packages: a window of media, a window of tokens, and a selection.

A clip is the same structure with a leading axis ``W`` of windows on every leaf.
"""

from __future__ import annotations

import enum
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8

from omnizip_jax.window_spec import WindowSpec


class TokenKind(enum.IntEnum):
    """Kind of a token of the decoder's sequence; media kinds come last.

    PREFIX is the chat template up to the first clip, TEXT any later text, START the tokens that
    open a video.
    """

    PREFIX = 0
    TEXT = 1
    START = 2
    AUDIO = 3
    VIDEO = 4


class Window(struct.PyTreeNode):
    """Two seconds of video and audio in the form that is sent to the device.

    Attributes:
        patches: pixels of each grid (two frames), cut into patches. A token is ``merge**2``
            consecutive patches; tokens are row-major over the ``grid_size`` cells and fill the
            front of the slots; a patch is laid out channel, frame, row, column.
        grid_size: rows and columns of tokens in each grid; the rest of the slots is padding.
        grid_mask: grids that exist.
        grid_time: position ids between the start of the window and each grid.
        mel: log-mel spectrogram, 100 frames a second, zeros after ``mel_length``.
        mel_length: mel frames that exist; 0 is a window without audio.
    """

    patches: UInt8[Array, "*W G patches values"]
    grid_size: Int[Array, "*W 2"]
    grid_mask: Bool[Array, "*W G"]
    grid_time: Int[Array, "*W G"]
    mel: Float[Array, "*W bins frames"]
    mel_length: Int[Array, "*W"]

    @classmethod
    def empty(cls, spec: WindowSpec, count: int | None = None) -> Window:
        """A window without video and audio, with numpy leaves, to build windows from.

        Its pixels are a view of a single zero and take no memory.

        Args:
            count: number of windows, with a leading axis; None: one window without that axis.
        """
        lead = () if count is None else (count,)
        times = np.arange(spec.grids, dtype=np.int32) * spec.positions // spec.grids
        leaves: dict[str, Any] = {  # numpy on the host, where the annotations say Array
            "patches": np.broadcast_to(np.uint8(0), (*lead, spec.grids, *spec.grid_shape)),
            "grid_size": np.ones((*lead, 2), np.int32),
            "grid_mask": np.zeros((*lead, spec.grids), bool),
            "grid_time": np.tile(times, (*lead, 1)),
            "mel": np.zeros((*lead, spec.mel_bins, spec.mel_frames), np.float32),
            "mel_length": np.zeros(lead, np.int32),
        }
        return cls(**leaves)


class AudioFeatures(struct.PyTreeNode):
    """Audio encoder outputs of one window.

    A token is ``T // A`` frames (2 in Qwen2.5-Omni, 1 in Qwen3-Omni); slots outside the masks are
    finite padding.

    Attributes:
        tokens: embeddings in the decoder's space.
        token_mask: tokens that exist.
        queries, keys: of the last layer, not yet scaled: Q and K of the paper's eq. 2.
        frame_mask: frames that exist.
    """

    tokens: Float[Array, "A D"]
    token_mask: Bool[Array, " A"]
    queries: Float[Array, "T N H"]
    keys: Float[Array, "T N H"]
    frame_mask: Bool[Array, " T"]


class VisionFeatures(struct.PyTreeNode):
    """Outputs of the vision encoder's last block of full attention that methods may use.

    Attributes:
        received: attention that each token receives inside its grid: mean over heads and over the
            token's patches, summed over queries; 0 where there is no token.
        keys: mean over heads and patches of each token's keys.
    """

    received: Float[Array, "*W G P"]
    keys: Float[Array, "*W G P H"]


class EncodedWindow(struct.PyTreeNode):
    """Encoder outputs of a window, before any score or selection.

    Attributes:
        audio: embeddings, and the last layer's queries and keys for the audio score (eq. 2).
        video, video_mask: embeddings of each grid, and the slots that hold one.
        vision: only for methods whose ``wants`` has "vision".
        deepstack: rows for the video tokens, which are added to the hidden states after each of
            the decoder's first K layers; None in families without DeepStack.
        runs: how often video and audio alternate in the window's part of the prompt.
        score_windows: number of windows over which the authors' code takes the softmax of the audio
            score for this family; None: the clip.
    """

    audio: AudioFeatures
    video: Float[Array, "*W G P D"]
    video_mask: Bool[Array, "*W G P"]
    vision: VisionFeatures | None = None
    deepstack: Float[Array, "*W K G P D"] | None = None
    runs: int = struct.field(pytree_node=False, default=1)
    score_windows: int | None = struct.field(pytree_node=False, default=None)


class EncodedClip(struct.PyTreeNode):
    """Encoded windows of a clip; a stream's window is a clip of one.

    Attributes:
        windows: encoder outputs, padded with those of empty windows.
        layout: the same windows without their content; positions are computed from it.
        last: index of the last window that is not padding.
    """

    windows: EncodedWindow
    layout: Window
    last: Int[Array, ""]


class WindowTokens(struct.PyTreeNode):
    """Embeddings of a window in the decoder's space, and audio scores.

    Attributes:
        audio: A audio embeddings.
        audio_scores: mean attention that each audio token receives (eq. 2), pooled.
        audio_mask: audio tokens that exist.
        video: G grids of P video embeddings.
        video_mask: video tokens that exist.
    """

    audio: Float[Array, "*W A D"]
    audio_scores: Float[Array, "*W A"]
    audio_mask: Bool[Array, "*W A"]
    video: Float[Array, "*W G P D"]
    video_mask: Bool[Array, "*W G P"]


class Selection(struct.PyTreeNode):
    """Kept tokens of a window, or of a clip of W windows, with replaced rows and rates.

    Attributes:
        audio, video: the embeddings, if a method replaces some; None: as encoded.
        audio_keep, video_keep: kept tokens.
        audio_salient: kept audio tokens that are salient; the other kept ones are anchors, which
            other tokens were merged into.
        audio_retention: S_a, kept share of each window's audio tokens; 0 without audio.
        video_rate: discarded share of each window's video tokens; 0 without video.
        audio_depth, video_depth: share of the decoder's layers that process each token, where a
            method has stages inside the decoder; None: all layers process all kept tokens.
    """

    audio: Float[Array, "*W A D"] | None
    video: Float[Array, "*W G P D"] | None
    audio_keep: Bool[Array, "*W A"]
    audio_salient: Bool[Array, "*W A"]
    video_keep: Bool[Array, "*W G P"]
    audio_retention: Float[Array, "*W"]
    video_rate: Float[Array, "*W"]
    audio_depth: Float[Array, "*W A"] | None = None
    video_depth: Float[Array, "*W G P"] | None = None

    @classmethod
    def of(
        cls,
        audio_mask: Bool[Array, "*W A"],
        video_mask: Bool[Array, "*W G P"],
        audio_keep: Bool[Array, "*W A"],
        video_keep: Bool[Array, "*W G P"],
        *,
        audio: Float[Array, "*W A D"] | None = None,
        video: Float[Array, "*W G P D"] | None = None,
        audio_salient: Bool[Array, "*W A"] | None = None,
    ) -> Selection:
        """Derive retention and rates from the masks of existing and of kept tokens.

        Without ``audio_salient``, all kept audio tokens are salient.
        """
        audio_count, video_count = jnp.sum(audio_mask, -1), jnp.sum(video_mask, (-2, -1))
        audio_kept, video_kept = jnp.sum(audio_keep, -1), jnp.sum(video_keep, (-2, -1))
        return cls(
            audio=audio,
            video=video,
            audio_keep=audio_keep,
            audio_salient=audio_keep if audio_salient is None else audio_salient,
            video_keep=video_keep,
            audio_retention=jnp.float32(audio_kept) / jnp.maximum(audio_count, 1),
            video_rate=jnp.float32(video_count - video_kept) / jnp.maximum(video_count, 1),
        )

    @property
    def trace(self) -> Selection:
        """The selection without the embeddings, for plots and statistics."""
        return self.replace(audio=None, video=None)
