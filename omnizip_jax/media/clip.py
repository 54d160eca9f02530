"""A whole clip as windows."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from omnizip_jax.config import WindowSpec
from omnizip_jax.media.arrays import MediaArrays
from omnizip_jax.media.clock import (
    POSITIONS_PER_SECOND,
    FrameSampler,
    Picture,
    Sound,
    continue_sound,
    grid_position,
)
from omnizip_jax.media.decode import MediaFile
from omnizip_jax.media.picture import fit_grid, patchify, unpatchify
from omnizip_jax.media.sound import HOP, SAMPLE_RATE, clip_log_mel
from omnizip_jax.types import Window

_MEL_FOR_TOKEN = 3  # fewer mel frames at the end of a clip do not make an audio token


@dataclasses.dataclass(frozen=True)
class Clip:
    """A decoded clip.

    Attributes:
        windows: numpy leaves, leading axis W.
        duration: seconds, of the longer of picture and sound.
        seconds_per_grid: time that each grid stands for; more than usual under ``max_frames``.
        has_video, has_audio: whether there is any picture, any sound.
    """

    windows: Window
    duration: float
    seconds_per_grid: float
    has_video: bool
    has_audio: bool


def load_clip(
    source: str | Path | tuple[Any, float, Any, int],
    spec: WindowSpec = WindowSpec(),  # noqa: B008 (frozen)
    *,
    patch: int = 14,
    merge: int = 2,
    temporal_patch: int = 2,
    mel_bins: int = 128,
    max_frames: int | None = None,
    use_audio: bool = True,
    use_video: bool = True,
    progress: bool = False,
) -> Clip:
    """Decode a clip and cut it into windows.

    Window j covers ``spec.seconds`` from ``j * spec.seconds``. Frame i is the picture on display
    in the middle of [i, i + 1) * 0.5 s; two frames make a grid, two grids fill a window. A grid
    of which only one frame exists repeats it. Pictures are turned upright and resized so that a
    grid has at most ``spec.grid_slots`` tokens. Sound becomes Whisper's log-mel spectrogram of
    the whole clip, cut into pieces of 200 frames.

    Args:
        source: path, URL, or (frames uint8 [T, H, W, 3], fps, waveform float [S] or None,
            sample rate).
        spec: shape of the windows.
        patch, merge, temporal_patch: of the vision encoder (``VisionConfig``).
        mel_bins: of the audio encoder (``AudioConfig``).
        max_frames: at most so many frames, uniformly over the clip; grids then stand for their
            true time and windows hold fewer of them.
        use_audio, use_video: False leaves that stream out.
        progress: show a bar of stream time.

    Raises:
        ValueError: the source cannot be read, holds nothing of use, or is of a wrong type or
            shape; ``max_frames`` below one grid.
    """
    if max_frames is not None and max_frames < temporal_patch:
        raise ValueError(
            f"max_frames must allow for one grid of {temporal_patch} frames, got {max_frames}"
        )
    if not (use_audio or use_video):
        raise ValueError("use_audio and use_video are both False: nothing would be left")
    media = (
        MediaArrays(*_four(source), use_video=use_video, use_audio=use_audio)
        if isinstance(source, tuple)
        else MediaFile(source, use_video=use_video, use_audio=use_audio)
    )
    with media:
        spacing = spec.seconds / (spec.grids * temporal_patch)
        if max_frames is not None and media.has_video:
            max_frames -= max_frames % temporal_patch
            spacing = max(spacing, media.video_end() / max_frames)
        sampler = FrameSampler(spacing)
        grids = _Grids(spec.grid_slots, patch, merge, temporal_patch, max_frames)
        sound, heard, seen = [np.zeros(0, np.float32)], 0, 0.0
        total = None if media.duration is None else math.ceil(media.duration)
        with tqdm(total=total, disable=not progress, desc="decoding", unit="s") as bar:
            for event in media.decode(sampler.wants):
                try:
                    if isinstance(event, Sound):
                        sound.append(continue_sound(heard, event))
                        heard += len(sound[-1])
                    else:
                        seen = max(seen, event.end)
                        grids.add(sampler.push(event))
                except ValueError as error:
                    raise ValueError(f"{media.name}: {error}") from error
                now = int(max(seen, heard / SAMPLE_RATE))
                bar.update(max(0, min(now, total or now) - bar.n))
            grids.add(sampler.finish())
        duration = max(seen, heard / SAMPLE_RATE)
        promised = media.duration if use_audio and use_video else None
        if promised is not None and duration < 0.9 * promised:
            warnings.warn(
                f"{media.name}: ends at {duration:.1f} s of {promised:.1f} s; is it cut off?",
                stacklevel=2,
            )
        if max_frames is not None and seen > (max_frames + 0.5) * spacing:
            warnings.warn(
                f"{media.name}: longer than it says; max_frames ended its pictures at "
                f"{max_frames * spacing:.1f} s",
                stacklevel=2,
            )

    waveform = np.concatenate(sound)
    if not np.isfinite(waveform).all():
        raise ValueError(f"{media.name}: the sound holds NaN or infinite samples")
    mel = clip_log_mel(waveform, mel_bins)
    seconds_per_grid = spacing * temporal_patch
    return Clip(
        windows=_cut(grids.finish(), mel, seconds_per_grid, spec, grids.cells, grids.shape),
        duration=duration,
        seconds_per_grid=seconds_per_grid,
        has_video=grids.cells is not None,
        has_audio=heard > 0,
    )


def window_frames(
    window: Window, *, patch: int = 14, merge: int = 2
) -> UInt8[np.ndarray, "frames height width 3"]:
    """The pictures of a window, or of all windows of a clip, as the model sees them."""
    rows, columns = np.asarray(window.grid_size).reshape(-1, 2)[0]
    patches = np.asarray(window.patches)[np.asarray(window.grid_mask)]
    frames = [unpatchify(grid, rows, columns, patch, merge) for grid in patches]
    empty = np.zeros((0, rows * merge * patch, columns * merge * patch, 3), np.uint8)
    return np.concatenate([empty, *frames])


class _Grids:
    """Collects sampled pictures into grids of patches."""

    def __init__(self, slots: int, patch: int, merge: int, frames: int, limit: int | None):
        self.cells: tuple[int, int] | None = None  # rows and columns of tokens
        self.shape = slots * merge**2, 3 * frames * patch**2
        self._slots, self._patch, self._merge, self._count = slots, patch, merge, frames
        self._limit = limit
        self._grids: dict[int, np.ndarray] = {}
        self._frames: dict[int, np.ndarray] = {}  # of the grid at hand
        self._grid = -1
        self._picture, self._pixels = None, np.zeros(0)

    def add(self, samples: list[tuple[int, Picture]]) -> None:
        for index, picture in samples:
            if self._limit is not None and index >= self._limit:
                return  # the container said that the video is shorter
            if self.cells is None:
                self.cells = fit_grid(picture.height, picture.width, self._slots)
            if picture is not self._picture:
                rows, columns = self.cells
                side = self._merge * self._patch
                self._picture, self._pixels = picture, picture.render(rows * side, columns * side)
            grid, frame = divmod(index, self._count)
            if grid != self._grid:
                self._close()
                self._grid = grid
            self._frames[frame] = self._pixels

    def finish(self) -> dict[int, np.ndarray]:
        """Patches of each grid, by its index on the clock."""
        self._close()
        return self._grids

    def _close(self) -> None:
        if self._frames:
            first, last = min(self._frames), max(self._frames)
            frames = [self._frames[min(max(i, first), last)] for i in range(self._count)]
            self._grids[self._grid] = patchify(np.stack(frames), self._patch, self._merge)
            self._frames = {}


def _cut(grids, mel, seconds_per_grid, spec: WindowSpec, cells, shape) -> Window:
    """Place grids and mel frames into windows; ``shape`` is that of one grid of patches."""
    positions = {grid: grid_position(grid, seconds_per_grid) for grid in grids}
    per_window = POSITIONS_PER_SECOND * spec.seconds
    mel_frames = SAMPLE_RATE // HOP * spec.seconds
    bins, length = mel.shape
    count = max(
        1,
        max(positions.values(), default=-1) // per_window + 1,
        -(-(length - _MEL_FOR_TOKEN + 1) // mel_frames),
    )

    patches = np.zeros((count, spec.grids, *shape), np.uint8)
    mask = np.zeros((count, spec.grids), bool)
    time = np.tile(np.arange(spec.grids) * per_window // spec.grids, (count, 1))
    for grid, values in grids.items():
        window, offset = divmod(positions[grid], per_window)
        slot = mask[window].sum()
        patches[window, slot, : len(values)] = values
        mask[window, slot] = True
        time[window, slot] = offset

    padded = np.zeros((bins, count * mel_frames), np.float32)
    used = min(length, padded.shape[1])
    padded[:, :used] = mel[:, :used]
    leaves: dict[str, Any] = {  # numpy here; arrays of the device once they are used
        "patches": patches,
        "grid_size": np.tile(np.array(cells or (1, 1), np.int32), (count, 1)),
        "grid_mask": mask,
        "grid_time": time.astype(np.int32),
        "mel": np.ascontiguousarray(padded.reshape(bins, count, -1).transpose(1, 0, 2)),
        "mel_length": np.clip(used - mel_frames * np.arange(count), 0, mel_frames).astype(np.int32),
    }
    return Window(**leaves)


def _four(source: tuple) -> tuple:
    if len(source) != 4:
        raise ValueError(
            f"arrays come as (frames, fps, waveform, sample_rate), got {len(source)} values"
        )
    return source
