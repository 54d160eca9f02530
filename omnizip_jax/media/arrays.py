"""Pictures and sound that are already in memory, with the interface of a file."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from omnizip_jax.media.clock import LIMIT, Picture, Sound, check_samples
from omnizip_jax.media.pixels import resize
from omnizip_jax.media.resample import Resampler, audio_frame

NUMBER = (int, float, np.integer, np.floating)


class MediaArrays:
    """Frames and a waveform, seen as a ``MediaFile``.

    Args:
        frames: uint8 RGB [T, H, W, 3], or None.
        fps: frames per second.
        waveform: mono float samples [S], normally within -1..1, or None.
        sample_rate: samples per second; not looked at without a waveform.

    Raises:
        ValueError: a wrong type, shape or rate, or samples that are not finite.
    """

    name = "arrays"

    def __init__(
        self,
        frames: Any,
        fps: float,
        waveform: Any,
        sample_rate: int,
        *,
        use_video: bool = True,
        use_audio: bool = True,
    ):
        self._frames = np.asarray(frames) if use_video and frames is not None else None
        self._waveform = np.asarray(waveform) if use_audio and waveform is not None else None
        if self._frames is None and self._waveform is None:
            asked = " or ".join(["frames"] * use_video + ["a waveform"] * use_audio)
            raise ValueError(f"expected {asked}, got None")
        if self._frames is not None:
            shape, dtype = self._frames.shape, self._frames.dtype
            if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
                raise ValueError(f"frames must be uint8 RGB [T, H, W, 3], got {dtype} {shape}")
            if not (isinstance(fps, NUMBER) and math.isfinite(fps) and fps * LIMIT >= 1):
                raise ValueError(f"fps must be a positive number, at least 1/3600, got {fps!r}")
        if self._waveform is not None:
            shape, dtype = self._waveform.shape, self._waveform.dtype
            if not np.issubdtype(dtype, np.floating) or len(shape) != 1:
                raise ValueError(
                    f"waveform must be float [S], mono and within -1..1, got {dtype} {shape}; "
                    "average channels, and divide integers by their range"
                )
            check_rate(sample_rate)
        self._fps = fps
        self._rate = 0 if self._waveform is None else int(sample_rate)

    @classmethod
    def of(cls, source: tuple, *, use_video: bool = True, use_audio: bool = True) -> MediaArrays:
        """From all four in a tuple."""
        if len(source) != 4:
            raise ValueError(
                f"arrays come as (frames, fps, waveform, sample_rate), got {len(source)} values"
            )
        return cls(*source, use_video=use_video, use_audio=use_audio)

    @property
    def has_video(self) -> bool:
        return self._frames is not None

    @property
    def has_audio(self) -> bool:
        return self._waveform is not None

    def video_end(self) -> float:
        """Seconds from the start of the clip to the end of the pictures."""
        return 0.0 if self._frames is None else len(self._frames) / self._fps

    @property
    def duration(self) -> float:
        audio = 0.0 if self._waveform is None else len(self._waveform) / self._rate
        return max(self.video_end(), audio)

    def __enter__(self) -> MediaArrays:
        return self

    def __exit__(self, *_):
        pass

    def decode(
        self,
        wants: Callable[[float, float], bool] | None = None,
        *,
        video: bool = True,
        audio: bool = True,
    ) -> Iterator[Picture | Sound]:
        """Pictures that are wanted, then the sound; see ``MediaFile.decode``."""
        if self._frames is not None and video:
            height, width = self._frames.shape[1:3]
            last = len(self._frames) - 1
            for index, frame in enumerate(self._frames):
                start, end = index / self._fps, (index + 1) / self._fps
                if wants is None or index == last or wants(start, end):
                    render = functools.partial(resize, frame)
                    yield Picture(start, end, height, width, render)
        if self._waveform is not None and audio:
            resampler = Resampler()
            for start in range(0, len(self._waveform), self._rate):
                block = self._waveform[start : start + self._rate]
                check_samples(block)
                yield from resampler.push(audio_frame(block, start, self._rate))
            yield from resampler.finish()


def check_rate(rate: Any) -> None:
    """Raise ValueError unless this is a sample rate."""
    if not (isinstance(rate, NUMBER) and 1 <= rate < 2**31 and rate == int(rate)):
        raise ValueError(f"sample_rate must be a positive integer, got {rate!r}")
