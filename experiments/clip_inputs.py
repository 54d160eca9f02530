"""Windows of clips as arrays, from mp4 files, with streaming audio or exchanged modalities."""

from __future__ import annotations

# pyright: reportArgumentType=false
# Windows are made of numpy arrays; their fields are declared for the device.
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from experiments.oracle_methods import Oracle, with_objects
from omnizip_jax.compression import Method
from omnizip_jax.media import load_clip
from omnizip_jax.media.audio import MelStream
from omnizip_jax.media.pixels import patchify
from omnizip_jax.testbed.synthetic_clips import CELL, SIDE, SPEC, SyntheticClip
from omnizip_jax.types import EncodedWindow, Window

GRID = SIDE // CELL  # tokens along the side of a frame


def clip_log_mel(
    samples: Float[np.ndarray, " samples"], bins: int
) -> Float[np.ndarray, "bins frames"]:
    """Log-mel spectrogram of a whole clip of any length, ``ceil(samples / 160)`` frames."""
    stream = MelStream(bins)
    stream.push(samples)
    stream.finish()
    return stream.take(stream.frames)


def clip_to_windows(clip: SyntheticClip, separate_audio: bool = False) -> Window:
    """Windows of a clip as ``load_clip`` returns them, without resizing and resampling.

    ``separate_audio`` normalises the spectrogram of every window by that window alone, the worst
    case of a stream.
    """
    pairs = clip.frames.reshape(-1, 2, *clip.frames.shape[1:])
    patches = np.stack([patchify(pair, 14, 2) for pair in pairs])
    pieces = clip.waveform.reshape(len(pairs) // SPEC.seconds if separate_audio else 1, -1)
    mel = np.concatenate([clip_log_mel(piece, SPEC.mel_bins) for piece in pieces], axis=1)
    mel = mel.reshape(SPEC.mel_bins, -1, SPEC.mel_frames).transpose(1, 0, 2)
    return _windows(patches.reshape(-1, 2, *patches.shape[1:]), mel)


def clip_to_windows_by_file(clip: SyntheticClip) -> Window:
    """Windows of a clip that was written to an mp4 file and decoded."""
    with tempfile.TemporaryDirectory() as folder:
        windows = load_clip(clip.write(Path(folder) / "clip.mp4"), SPEC).windows
    count = len(clip.video_objects) // SPEC.seconds  # codecs append some silence
    return _windows(windows.patches[:count], windows.mel[:count])


def _windows(patches: np.ndarray, mel: np.ndarray) -> Window:
    empty = Window.empty(SPEC, len(patches))
    return empty.replace(
        patches=patches,
        grid_size=empty.grid_size * GRID,
        grid_mask=~empty.grid_mask,
        mel=mel,
        mel_length=empty.mel_length + SPEC.mel_frames,
    )


def streaming_mel(waveform: Float[np.ndarray, " S"]) -> Float[np.ndarray, "W bins frames"]:
    """Spectrogram of each window as a stream computes it when the window is complete.

    It is normalised by the loudest moment so far instead of the loudest of the clip.
    """
    stream = MelStream(SPEC.mel_bins)
    stream.push(waveform)
    stream.finish()
    ends = range(SPEC.mel_frames, stream.frames + 1, SPEC.mel_frames)
    return np.stack([stream.take(end) for end in ends])


@dataclasses.dataclass(frozen=True)
class Row:
    """A measured configuration: a method and its input.

    Attributes:
        audio: "own": the clip's; "live": the clip's, normalised as in a stream; "other": that of
            another clip.
        video: "own": the clip's; "other": that of another clip.
    """

    method: Method
    audio: Literal["own", "live", "other"] = "own"
    video: Literal["own", "other"] = "own"


class BlockInputs:
    """Encoded inputs of a block of clips; variants are encoded when a row needs them.

    Args:
        own: the encoded clips: [B, W, ...].
        clips: of equal length.
        others: returns as many other clips of this length.
        encode: clips as windows to encoded windows [B, W, ...].
    """

    def __init__(
        self,
        own: EncodedWindow,
        clips: Sequence[SyntheticClip],
        others: Callable[[], Sequence[SyntheticClip]],
        encode: Callable[[Sequence[Window]], EncodedWindow],
    ):
        self._own, self._clips, self._others, self._encode = own, clips, others, encode

    def of(self, row: Row) -> EncodedWindow:
        """Input of a row: [B, W, ...]."""
        windows = self._own
        if row.audio != "own":
            source = self._live if row.audio == "live" else self._other
            windows = windows.replace(audio=source.audio)
        if row.video == "other":
            fields = ("video", "video_mask", "vision")
            windows = windows.replace(**{name: getattr(self._other, name) for name in fields})
        return with_objects(windows, self._clips) if isinstance(row.method, Oracle) else windows

    @functools.cached_property
    def _live(self) -> EncodedWindow:
        return self._encode(
            [clip_to_windows(c).replace(mel=streaming_mel(c.waveform)) for c in self._clips]
        )

    @functools.cached_property
    def _other(self) -> EncodedWindow:
        return self._encode([clip_to_windows(clip) for clip in self._others()])
