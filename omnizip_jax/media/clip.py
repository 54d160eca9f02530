"""A whole clip as windows."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import numbers
import os
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from omnizip_jax.media.bounded_queue import prefetch, run_in_thread
from omnizip_jax.media.deferred_warnings import DeferredWarnings
from omnizip_jax.media.pixels import unpatchify
from omnizip_jax.media.sources import PREFETCHED_EVENTS, close_at_end, is_local, open_media
from omnizip_jax.media.timeline import AudioChunk, Excerpt, VideoFrame
from omnizip_jax.media.validation import check_selection, check_timeout, check_windows
from omnizip_jax.media.windowing import WindowBuilder
from omnizip_jax.types import Window
from omnizip_jax.window_spec import WindowSpec


@dataclasses.dataclass(frozen=True)
class Clip:
    """A decoded clip.

    Attributes:
        windows: numpy leaves, leading axis W.
        duration: seconds, of the longer of video and audio.
        seconds_per_grid: time that each grid stands for; more than usual under ``max_frames``.
        has_video, has_audio: streams of which there is any content.
        spec: shape of the windows.
        window_indices: indices of these windows in the source; None for all of them.
    """

    windows: Window
    duration: float
    seconds_per_grid: float
    has_video: bool
    has_audio: bool
    spec: WindowSpec
    window_indices: tuple[int, ...] | None = None

    def sample(self, count: int) -> Clip:
        """A clip of at most ``count`` windows, spread evenly: a preview without all pixels."""
        total = len(self.windows.mel_length)
        chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
        windows = jax.tree.map(lambda x: np.asarray(x)[chosen], self.windows)
        indices = range(total) if self.window_indices is None else self.window_indices
        return dataclasses.replace(
            self, windows=windows, window_indices=tuple(indices[i] for i in chosen)
        )


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
    audio_stream: int | None = None,
    video_stream: int | None = None,
    progress: bool = False,
) -> Clip:
    """Decode a clip and cut it into windows.

    Window j covers ``spec.seconds`` from ``j * spec.seconds``. Frame i is the one on display
    in the middle of [i, i + 1) * 0.5 s; two frames make a grid, two grids fill a window. A grid
    of which only one frame exists repeats it. Frames are turned upright and resized so that a
    grid has at most ``spec.grid_slots`` tokens. Audio becomes Whisper's log-mel spectrogram of
    the whole clip, cut into pieces of 200 frames.

    Args:
        source: path, URL, or (frames uint8 [T, H, W, 3], fps, waveform float [S] or None,
            sample rate).
        spec: shape of the windows.
        start, end: read only this part, seconds, as if it were the whole clip. Media before it
            are decoded and dropped; media after it are not read.
        max_frames: sample at most this many frames, uniformly over the clip; grids then stand
            for their true time and windows hold fewer of them.
        max_windows: a longer clip is an error, found before decoding where the source states its
            duration, and otherwise as soon as it is too long.
        timeout: seconds without data after which a URL is an error; None waits.
        use_audio, use_video: False ignores that stream.
        audio_stream, video_stream: which stream of a file with several of a kind, numbered from
            0; None takes the one that FFmpeg prefers, and warns.
        progress: show a bar of stream time.

    Raises:
        ValueError: the source cannot be read, has no usable media, or is of a wrong type or
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
    check_selection(use_video, use_audio)
    deferred, blocks = DeferredWarnings(), not is_local(source)
    media = open_media(
        source,
        use_video,
        use_audio,
        timeout=timeout,
        deferred=deferred,
        audio_stream=audio_stream,
        video_stream=video_stream,
    )
    stated = None if media.duration is None else part.length(media.duration)
    longest = math.inf if max_windows is None else (max_windows + 1) * spec.seconds
    spacing = spec.seconds / spec.frames

    def check_length(seconds: float) -> None:
        if seconds >= longest:  # a window more, as some milliseconds of audio make no window
            raise ValueError(
                f"{media.name}: lasts {seconds:.0f} s or longer, too long for {max_windows} "
                f"windows of {spec.seconds} s: shorten the clip, or stream it"
            )

    with contextlib.ExitStack() as on_error:
        on_error.enter_context(media)
        if blocks:
            check_length(stated or 0.0)
        spread = max_frames if media.has_video else None
        # Headers may be wrong: what they call too long is counted before it is refused.
        if spread or (not blocks and max(media.claimed, stated or 0.0) >= longest):
            until = part.start + min(longest, part.length(math.inf))
            count = functools.partial(media.count, until)
            video_end, end = run_in_thread(count, media.name) if blocks else count()
            check_length(part.length(end))
            if spread:
                max_frames = spread - spread % spec.temporal_patch
                spacing = max(spacing, part.length(video_end) / max_frames)
        on_error.pop_all()
    builder = WindowBuilder(spec, spacing, max_frames)
    kinds = ((VideoFrame, media.has_video), (AudioChunk, media.has_audio))
    events = part.select(
        media.decode(part.on_source_clock(builder.sampler.needs)),
        [kind for kind, exists in kinds if exists],
    )
    events = close_at_end([media], events)
    if blocks:  # from here on its thread alone touches the source
        events = prefetch(events, media.name, PREFETCHED_EVENTS)
    total = None if stated is None else math.ceil(stated)
    with (
        contextlib.closing(events),
        tqdm(total=total, disable=not progress, desc="decoding", unit="s") as bar,
    ):
        for event in events:
            check_length(event.start)
            try:
                if isinstance(event, AudioChunk):
                    builder.push_audio(event)
                else:
                    builder.push_frame(event)
            except ValueError as error:
                raise ValueError(f"{media.name}: {error}") from error
            now = int(builder.duration)
            bar.update(max(0, min(now, total or now) - bar.n))
    video_end, has_audio = builder.video_end, builder.mel.written > 0
    check_length(video_end)
    builder.finish_video()
    builder.mel.finish()
    if builder.count == 0:
        where = "" if part.is_whole else f" {part}"
        raise ValueError(f"{media.name}: no video and no audio could be decoded{where}")
    if use_audio and use_video:
        deferred.add_if_short(media.name, builder.duration, stated)
    if max_frames is not None and video_end > (max_frames + 0.5) * spacing:
        deferred.add(
            f"{media.name}: longer than stated; max_frames ended its video at "
            f"{max_frames * spacing:.1f} s"
        )
    deferred.emit()
    return Clip(
        windows=builder.build(builder.count),
        duration=builder.duration,
        seconds_per_grid=builder.seconds_per_grid,
        has_video=builder.cells is not None,
        has_audio=has_audio,
        spec=spec,
    )


def check_clip(clip: Clip) -> None:
    """Raise ``ValueError`` unless its windows have the clip's shape and finite values."""
    count = len(np.atleast_1d(getattr(clip.windows, "mel_length", ())))
    if count == 0:
        raise ValueError("a clip needs a window: make it with omnizip_jax.media.load_clip")
    check_windows(clip.windows, clip.spec, count)


def window_frames(
    window: Window,
    spec: WindowSpec = WindowSpec(),  # noqa: B008 (frozen)
) -> UInt8[np.ndarray, "frames height width 3"]:
    """The frames of a window, or of all windows of a clip, at the resolution the model reads."""
    patch, merge = spec.patch, spec.merge
    rows, columns = np.asarray(window.grid_size).reshape(-1, 2)[0]
    patches = np.asarray(window.patches)[np.asarray(window.grid_mask)]
    frames = [unpatchify(grid, rows, columns, patch, merge) for grid in patches]
    empty = np.zeros((0, rows * merge * patch, columns * merge * patch, 3), np.uint8)
    return np.concatenate([empty, *frames])
