"""A whole clip as windows."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
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
from omnizip_jax.media.timeline import SAMPLE_RATE, AudioChunk, Excerpt, VideoFrame
from omnizip_jax.media.validation import (
    check_max_frames,
    check_selection,
    check_timeout,
    check_windows,
    named_errors,
)
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

    def select(
        self, max_frames: int | None = None, *, use_audio: bool = True, use_video: bool = True
    ) -> Clip:
        """The clip as ``load_clip`` with these options gives it, from the frames that it has.

        Raises:
            ValueError: nothing is left, or ``max_frames`` is below one grid.
        """
        check_max_frames(max_frames, self.spec)
        if use_video and use_audio and max_frames is None:
            return self
        windows, spec = self.windows, self.spec
        leaves: dict[str, Any] = {}
        if not use_audio:
            leaves = {name: np.zeros_like(getattr(windows, name)) for name in ("mel", "mel_length")}
        if not use_video:
            leaves["grid_mask"] = np.zeros_like(windows.grid_mask)
        has_video, has_audio = self.has_video and use_video, self.has_audio and use_audio
        if not (has_video or has_audio):
            raise ValueError("use_audio and use_video leave nothing of this clip")
        windows = jax.tree.map(np.asarray, windows.replace(**leaves))
        clip = dataclasses.replace(self, windows=windows, has_video=has_video, has_audio=has_audio)
        if max_frames is not None and windows.grid_mask.sum() * spec.temporal_patch > max_frames:
            clip = clip._resampled(max_frames - max_frames % spec.temporal_patch)
        filled = clip.windows.grid_mask.any(1) | (np.asarray(clip.windows.mel_length) > 0)
        count = int(np.max(np.flatnonzero(filled), initial=0)) + 1
        return dataclasses.replace(clip, windows=jax.tree.map(lambda x: x[:count], clip.windows))

    def _resampled(self, frames: int) -> Clip:
        """The clip with a number of frames, spread uniformly over its video."""
        windows, spec, per_grid = self.windows, self.spec, self.seconds_per_grid
        positions = np.arange(len(windows.grid_mask))[:, None] * spec.positions + windows.grid_time
        grids = np.rint(positions[windows.grid_mask] / (per_grid * spec.positions_per_second))
        step = per_grid / spec.temporal_patch
        starts = (grids[:, None] * per_grid + step * np.arange(spec.temporal_patch)).ravel()
        builder = WindowBuilder(spec, float(starts[-1] + step) / frames, frames)
        rows, columns = windows.grid_size[0].tolist()
        builder.cells = rows, columns
        for start, pixels in zip(starts.tolist(), window_frames(windows, spec), strict=True):
            height, width = pixels.shape[:2]
            render = functools.partial(lambda pixels, *_: pixels, pixels)
            builder.push_frame(VideoFrame(start, start + step, height, width, render))
        builder.finish_video()
        heard = int(np.max(np.flatnonzero(windows.mel_length), initial=-1)) + 1
        made = builder.build(max(builder.count, heard))
        for name in ("mel", "mel_length"):
            np.asarray(getattr(made, name))[:heard] = getattr(windows, name)[:heard]
        return dataclasses.replace(self, windows=made, seconds_per_grid=builder.seconds_per_grid)


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
    check_max_frames(max_frames, spec)
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
            with named_errors(media.name):
                if isinstance(event, AudioChunk):
                    builder.push_audio(event)
                else:
                    builder.push_frame(event)
            now = int(builder.duration)
            bar.update(max(0, min(now, total or now) - bar.n))
    video_end, has_audio = builder.video_end, builder.mel.written > 0
    check_length(video_end)
    with named_errors(media.name):
        builder.finish_video()
    builder.mel.finish()
    if builder.count == 0:
        where = "" if part.is_whole else f" {part}"
        raise ValueError(
            f"{media.name}: no video and no audio could be decoded{where}{_hint(media.name)}"
        )
    if use_audio and use_video:
        deferred.add_if_short(media.name, builder.duration, stated)
    if max_frames is not None and video_end > (max_frames + 0.5) * spacing:
        deferred.add(
            f"{media.name}: longer than stated; max_frames ended its video at "
            f"{max_frames * spacing:.1f} s"
        )
    if has_audio and builder.mel.frames < spec.min_mel_frames:
        seconds = builder.mel.written / SAMPLE_RATE
        deferred.add(f"{media.name}: {seconds:.3f} s of audio are too short for a token")
    deferred.emit()
    return Clip(
        windows=builder.build(builder.count),
        duration=builder.duration,
        seconds_per_grid=builder.seconds_per_grid,
        has_video=builder.cells is not None,
        has_audio=has_audio,
        spec=spec,
    )


def _hint(name: str) -> str:
    """The remedy for a file of which nothing could be decoded; empty if none is known."""
    if os.path.isfile(name):  # opening a pipe would wait
        with open(name, "rb") as file:
            head = file.read(64)
        if head[8:12] == b"WEBP" and b"ANIM" in head:
            return "; FFmpeg does not decode animated WebP: convert it to GIF or MP4"
    return ""


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
