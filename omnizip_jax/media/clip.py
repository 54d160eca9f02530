"""A whole clip as windows."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
import os
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from omnizip_jax.config import WindowSpec
from omnizip_jax.media.bounded_queue import apart, read_ahead
from omnizip_jax.media.clock import FrameSampler, Picture, Sound, continue_sound
from omnizip_jax.media.container import note_if_short
from omnizip_jax.media.deferred_warnings import Notes
from omnizip_jax.media.excerpt import Excerpt
from omnizip_jax.media.pixels import unpatchify
from omnizip_jax.media.sound import SAMPLE_RATE, clip_log_mel
from omnizip_jax.media.sources import (
    EVENTS,
    check_timeout,
    closing_media,
    is_local,
    open_media,
)
from omnizip_jax.media.windowing import Grids, count_windows, cut_windows
from omnizip_jax.types import Window


@dataclasses.dataclass(frozen=True)
class Clip:
    """A decoded clip.

    Attributes:
        windows: numpy leaves, leading axis W.
        duration: seconds, of the longer of picture and sound.
        seconds_per_grid: time that each grid stands for; more than usual under ``max_frames``.
        has_video, has_audio: whether there is any picture, any sound.
        spec: shape of the windows.
        numbers: which windows of the source these are; None for all of them.
    """

    windows: Window
    duration: float
    seconds_per_grid: float
    has_video: bool
    has_audio: bool
    spec: WindowSpec
    numbers: tuple[int, ...] | None = None

    def sample(self, count: int) -> Clip:
        """At most so many windows, spread evenly: enough to look at, without holding all pixels."""
        total = len(self.windows.mel_length)
        chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
        windows = jax.tree.map(lambda x: np.asarray(x)[chosen], self.windows)
        numbers = range(total) if self.numbers is None else self.numbers
        return dataclasses.replace(self, windows=windows, numbers=tuple(numbers[i] for i in chosen))


def load_clip(
    source: str | os.PathLike[str] | tuple[Any, float, Any, int],
    spec: WindowSpec = WindowSpec(),  # noqa: B008 (frozen)
    *,
    start: float = 0.0,
    end: float | None = None,
    max_frames: int | None = None,
    max_windows: int | None = None,
    timeout: float | None = 10.0,
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
        start, end: only this part, seconds; it is read as if it were the whole clip. What lies
            before it is decoded and dropped; what lies behind it is not read.
        max_frames: at most so many frames, uniformly over the clip; grids then stand for their
            true time and windows hold fewer of them.
        max_windows: a longer clip is an error, found before its pictures are decoded where the
            source says how long it is, and otherwise as soon as it is too long.
        timeout: seconds after which a URL from which nothing comes is an error; None waits.
        use_audio, use_video: False leaves that stream out.
        progress: show a bar of stream time.

    Raises:
        ValueError: the source cannot be read, holds nothing of use, or is of a wrong type or
            shape; it is too long; there is nothing between ``start`` and ``end``; ``max_frames``
            is below one grid.
    """
    part = Excerpt(start, end)
    if max_frames is not None and not (
        isinstance(max_frames, numbers.Integral) and max_frames >= spec.temporal_patch
    ):
        raise ValueError(
            f"max_frames must be an integer that allows for one grid of {spec.temporal_patch} "
            f"frames, got {max_frames!r}"
        )
    check_timeout(timeout)
    if not (use_audio or use_video):
        raise ValueError("use_audio and use_video are both False: nothing would be left")
    notes, waits = Notes(), not is_local(source)
    media = open_media(source, use_video, use_audio, timeout=timeout, notes=notes)
    promised = None if media.duration is None else part.length(media.duration)
    spacing = spec.seconds / spec.frames

    def check_length(seconds: float) -> None:
        # A window more, as some milliseconds of sound make no window.
        if max_windows is not None and seconds >= (max_windows + 1) * spec.seconds:
            raise ValueError(
                f"{media.name}: lasts {seconds:.0f} s or longer, too long for {max_windows} "
                f"windows of {spec.seconds} s: shorten the clip, or stream it"
            )

    with contextlib.ExitStack() as on_error:
        on_error.enter_context(media)
        check_length(promised or 0.0)
        if max_frames is not None and media.has_video:
            max_frames -= max_frames % spec.temporal_patch
            end = apart(media.video_end, media.name) if waits else media.video_end()
            spacing = max(spacing, part.length(end) / max_frames)
        on_error.pop_all()
    sampler = FrameSampler(spacing)
    grids = Grids(spec, max_frames)
    sound, heard, seen = [np.zeros(0, np.float32)], 0, 0.0
    total = None if promised is None else math.ceil(promised)
    kinds = [kind for kind, has in ((Picture, media.has_video), (Sound, media.has_audio)) if has]
    events = part.cut(media.decode(part.wants(sampler.wants)), kinds)
    events = closing_media([media], events)
    if waits:  # from here on its thread alone touches the source
        events = read_ahead(events, media.name, EVENTS)
    with (
        contextlib.closing(events),
        tqdm(total=total, disable=not progress, desc="decoding", unit="s") as bar,
    ):
        for event in events:
            check_length(event.start)
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
    check_length(seen)
    grids.add(sampler.finish())
    if not (heard or grids.end):
        where = "" if part.whole else f" {part}"
        raise ValueError(f"{media.name}: no picture and no sound could be decoded{where}")
    duration = max(seen, heard / SAMPLE_RATE)
    if use_audio and use_video:
        note_if_short(notes, media.name, duration, promised)
    if max_frames is not None and seen > (max_frames + 0.5) * spacing:
        notes.add(
            f"{media.name}: longer than it says; max_frames ended its pictures at "
            f"{max_frames * spacing:.1f} s"
        )
    notes.tell()

    mel = clip_log_mel(np.concatenate(sound), spec.mel_bins)
    per_grid = spacing * spec.temporal_patch
    count = count_windows(grids.end, mel.shape[1], per_grid, spec)
    return Clip(
        windows=cut_windows(grids.take(), mel, per_grid, spec, grids.cells, count),
        duration=duration,
        seconds_per_grid=per_grid,
        has_video=grids.cells is not None,
        has_audio=heard > 0,
        spec=spec,
    )


def window_frames(
    window: Window,
    spec: WindowSpec = WindowSpec(),  # noqa: B008 (frozen)
) -> UInt8[np.ndarray, "frames height width 3"]:
    """The pictures of a window, or of all windows of a clip, as the model sees them."""
    patch, merge = spec.patch, spec.merge
    rows, columns = np.asarray(window.grid_size).reshape(-1, 2)[0]
    patches = np.asarray(window.patches)[np.asarray(window.grid_mask)]
    frames = [unpatchify(grid, rows, columns, patch, merge) for grid in patches]
    empty = np.zeros((0, rows * merge * patch, columns * merge * patch, 3), np.uint8)
    return np.concatenate([empty, *frames])
