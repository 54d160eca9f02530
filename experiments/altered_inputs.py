"""Clips of which something was altered before the model reads them.

A stream hears otherwise than a file is heard, and a clip with the sound or the picture of another
one tells what a question needs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from experiments.reference_methods import Oracle, known
from experiments.training_batches import cut
from omnizip_jax.compression import AllTokens, Method
from omnizip_jax.media.audio import MelStream
from omnizip_jax.testbed.synthetic_clips import SPEC, SyntheticClip
from omnizip_jax.types import AudioFeatures, EncodedWindow, Window


@dataclasses.dataclass(frozen=True)
class Row:
    """What is measured: a method, and what it is given to read.

    Attributes:
        sound: the clip's own; the same as a stream hears it, which does not know the loudest moment
            before it comes; or that of another clip.
        picture: the clip's own, or that of another clip.
    """

    method: Method
    sound: Literal["own", "live", "other"] = "own"
    picture: Literal["own", "other"] = "own"


ALTERED = {
    "all tokens, live sound": Row(AllTokens(), sound="live"),
    "sound of another clip": Row(AllTokens(), sound="other"),
    "picture of another clip": Row(AllTokens(), picture="other"),
}


class Readings:
    """A block of encoded clips, and what rows read instead; encoded only if a row asks for it.

    Args:
        own: the clips as they are, encoded: [B, W, ...].
        clips: of equal length.
        others: makes as many others of this length.
        encode: clips of windows to encoded windows [B, W, ...].
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
        """What a row reads: [B, W, ...]."""
        windows = self._own
        if row.sound != "own":
            audio = self._live if row.sound == "live" else self._other.audio
            windows = windows.replace(audio=audio)
        if row.picture == "other":
            seen = ("video", "video_mask", "vision")
            windows = windows.replace(**{name: getattr(self._other, name) for name in seen})
        return known(windows, self._clips) if isinstance(row.method, Oracle) else windows

    @functools.cached_property
    def _live(self) -> AudioFeatures:
        heard = [cut(clip).replace(mel=live_mel(clip.waveform)) for clip in self._clips]
        return self._encode(heard).audio

    @functools.cached_property
    def _other(self) -> EncodedWindow:
        return self._encode([cut(clip) for clip in self._others()])


def live_mel(waveform: Float[np.ndarray, " S"]) -> Float[np.ndarray, "W bins frames"]:
    """Features of a clip's sound as a stream has them when a window is complete.

    The loudest moment so far stands in for the loudest of the clip.
    """
    stream = MelStream(SPEC.mel_bins)
    stream.push(waveform)
    stream.finish()
    ends = range(SPEC.mel_frames, stream.frames + 1, SPEC.mel_frames)
    return np.stack([stream.take(end) for end in ends])
