"""Sampled frames and mel frames to windows: all at once, or one by one as the media arrive.

No threads and no waiting here: see ``window_stream``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from omnizip_jax.media.audio import MelStream
from omnizip_jax.media.pixels import fit_grid, patchify
from omnizip_jax.media.timeline import (
    JITTER,
    SAMPLE_RATE,
    AudioChunk,
    Event,
    FrameSampler,
    StreamEnd,
    VideoFrame,
    align_audio,
    check_jump,
    grid_position,
)
from omnizip_jax.types import Window
from omnizip_jax.window_spec import WindowSpec

_MEL_FOR_TOKEN = 3  # fewer mel frames at the end of a clip do not make an audio token


class GridBuilder:
    """Collects sampled frames into grids of patches.

    Args:
        spec: shape of the windows.
        limit: samples from this one on are ignored.

    Attributes:
        cells: rows and columns of tokens, from the first frame; None before it.
        end: one more than the last grid so far.
    """

    def __init__(self, spec: WindowSpec, limit: int | None = None):
        self.cells: tuple[int, int] | None = None
        self.end = 0
        self._spec, self._limit = spec, limit
        self._grids: dict[int, np.ndarray] = {}
        self._frames: dict[int, np.ndarray] = {}  # of the current grid
        self._rendered, self._pixels = None, np.zeros(0)

    def fit(self, frame: VideoFrame) -> tuple[int, int]:
        """Rows and columns of tokens, which the first frame decides.

        Raises:
            ValueError: a frame of a shape that cannot be used.
        """
        if self.cells is None:
            self.cells = fit_grid(frame.height, frame.width, self._spec.grid_slots)
        return self.cells

    def add(self, samples: list[tuple[int, VideoFrame]]) -> None:
        """Add samples of a ``FrameSampler``."""
        for index, frame in samples:
            if self._limit is not None and index >= self._limit:
                return  # the container stated a shorter video
            rows, columns = self.fit(frame)
            if frame is not self._rendered:
                side = self._spec.merge * self._spec.patch
                self._rendered, self._pixels = frame, frame.render(rows * side, columns * side)
            grid, place = divmod(index, self._spec.temporal_patch)
            if grid >= self.end:
                self._close()
                self.end = grid + 1
            self._frames[place] = self._pixels

    def take(self, before: float = np.inf) -> dict[int, np.ndarray]:
        """Remove and return the patches of each grid before this one, by its index."""
        if self.end <= before:
            self._close()
        return {grid: self._grids.pop(grid) for grid in sorted(self._grids) if grid < before}

    def _close(self) -> None:
        spec = self._spec
        if self._frames:
            first, last = min(self._frames), max(self._frames)
            frames = [self._frames[min(max(i, first), last)] for i in range(spec.temporal_patch)]
            self._grids[self.end - 1] = patchify(np.stack(frames), spec.patch, spec.merge)
            self._frames = {}


def count_windows(end: int, mel_frames: int, seconds_per_grid: float, spec: WindowSpec) -> int:
    """Number of windows for the grids before ``end`` and for the mel frames; at least one."""
    last = grid_position(end - 1, seconds_per_grid, spec.positions_per_second)
    return max(
        1,
        last // spec.positions + 1 if end else 0,
        -(-(mel_frames - _MEL_FOR_TOKEN + 1) // spec.mel_frames),
    )


def build_windows(
    grids: dict[int, np.ndarray],
    mel: Float[np.ndarray, "bins frames"],
    seconds_per_grid: float,
    spec: WindowSpec,
    cells: tuple[int, int] | None,
    count: int,
    first: int = 0,
) -> Window:
    """Place grids and mel frames into ``count`` windows, numpy leaves with a leading axis.

    Args:
        grids: patches of each grid, by its index; all within these windows. They are removed one
            by one, so that a long clip is not stored twice.
        mel: features from the start of window ``first`` on.
        seconds_per_grid: time that each grid stands for.
        spec: shape of the windows.
        cells: see ``GridBuilder``.
        count, first: number of windows, and index of the first one.
    """
    windows = Window.empty(spec, count)
    bins, length = mel.shape
    # Pages of zeros that are never written to take no memory.
    patches = np.zeros(windows.patches.shape, np.uint8) if grids else windows.patches
    mask, time = np.asarray(windows.grid_mask), np.asarray(windows.grid_time)
    for grid in sorted(grids):
        values = grids.pop(grid)
        position = grid_position(grid, seconds_per_grid, spec.positions_per_second)
        window, offset = divmod(position, spec.positions)
        window -= first
        slot = mask[window].sum()
        patches[window, slot, : len(values)] = values
        mask[window, slot] = True
        time[window, slot] = offset

    frames = spec.mel_frames
    padded = np.zeros((bins, count * frames), np.float32)
    used = min(length, padded.shape[1])
    padded[:, :used] = mel[:, :used]
    leaves: dict[str, Any] = {  # numpy here; arrays of the device once they are used
        "patches": patches,
        "grid_size": np.tile(np.array(cells or (1, 1), np.int32), (count, 1)),
        "mel": np.ascontiguousarray(padded.reshape(bins, count, -1).transpose(1, 0, 2)),
        "mel_length": np.clip(used - frames * np.arange(count), 0, frames).astype(np.int32),
    }
    return windows.replace(**leaves)


class WindowAssembler:
    """Cuts a stream into windows by the clock: window j starts at ``j * spec.seconds``.

    A window is ready when video and audio have both passed its end, or have ended. Media that
    arrive for a window that has been emitted are dropped and counted.

    Args:
        spec: shape of the windows.
        has_video, has_audio: streams to wait for.
        max_lead: when one stream is this many seconds past the end of a window, the window is
            emitted without the other one, which is not waited for again until it resumes; None
            waits, until ``stop_waiting``.

    Attributes:
        maximum: largest log power of the whole audio; set it before the first window if known.
        emitted: windows emitted.
        incomplete: those among them that were emitted without waiting for both streams.
        late_frames: frames dropped because their window had been emitted.
        late_audio: seconds of audio dropped for that reason.
        duration: end of all video and audio so far, seconds.
    """

    def __init__(
        self,
        spec: WindowSpec,
        *,
        has_video: bool,
        has_audio: bool,
        max_lead: float | None = None,
    ):
        self.maximum: float | None = None
        self.emitted = self.incomplete = self.late_frames = 0
        self.late_audio = self.duration = 0.0
        self._spec, self._max_lead = spec, max_lead
        self._spacing = spec.seconds / spec.frames
        self._sampler = FrameSampler(self._spacing)
        self._grids = GridBuilder(spec)
        self._mel = MelStream(spec.mel_bins)
        self._last_frame = 0.0  # its start
        kinds = ((VideoFrame, has_video), (AudioChunk, has_audio))
        self._open = {kind for kind, exists in kinds if exists}
        self._not_awaited: set[type] = set()  # until they resume

    def push(self, event: Event) -> Iterator[Window]:
        """Add the next event; yields the windows that are now ready.

        Raises:
            ValueError: a frame or audio that cannot be used.
        """
        if isinstance(event, StreamEnd):
            self._end(VideoFrame if event.video else AudioChunk)
        elif isinstance(event, VideoFrame):
            self._not_awaited.discard(VideoFrame)
            self._push_frame(event)
        else:
            self._not_awaited.discard(AudioChunk)
            self._push_audio(event)
        yield from self._emit_ready()

    @property
    def is_partial(self) -> bool:
        """Whether the next window has one stream and waits for the other."""
        return bool(self._passed()) and not self._ready()

    def stop_waiting(self) -> Iterator[Window]:
        """Emit without the stream that the next window lacks, until it resumes."""
        self._not_awaited |= self._open - self._passed()
        yield from self._emit_ready()

    def emit(self) -> Window:
        """The next window, as far as it is complete."""
        missing = self._open - self._passed()
        if missing:
            self.incomplete += 1
        if VideoFrame in missing:  # the last frame is not held across a gap that was given up
            self._add_samples(self._sampler.finish())
            self._sampler = FrameSampler(self._spacing)
        self.emitted += 1
        spec = self._spec
        windows = build_windows(
            self._grids.take(self.emitted * spec.grids),
            self._mel.take(self.emitted * spec.mel_frames, self.maximum),
            spec.seconds / spec.grids,
            spec,
            self._grids.cells,
            count=1,
            first=self.emitted - 1,
        )
        if AudioChunk in self._open:
            self._mel.pad_silence(self.emitted * spec.seconds * SAMPLE_RATE)
        return jax.tree.map(lambda leaf: np.asarray(leaf[0]), windows)

    def finish(self) -> Iterator[Window]:
        """Yield the last windows, when no event follows.

        Raises:
            ValueError: the stream was empty.
        """
        self._end(VideoFrame)
        self._end(AudioChunk)
        if not (self.emitted or self._grids.end or self._mel.written):
            raise ValueError("no video and no audio could be decoded")
        seconds = self._spec.seconds / self._spec.grids
        count = count_windows(self._grids.end, self._mel.frames, seconds, self._spec)
        while self.emitted < count:
            yield self.emit()

    def _push_frame(self, frame: VideoFrame) -> None:
        self._grids.fit(frame)
        if self._sampler.intervals_before(frame.start) < self.emitted * self._spec.frames:
            self.late_frames += 1
            return
        check_jump(max(self._last_frame, self._time()), frame.start, "video")
        self._last_frame = frame.start
        self.duration = max(self.duration, frame.end)
        self._add_samples(self._sampler.push(frame))

    def _add_samples(self, samples: list[tuple[int, VideoFrame]]) -> None:
        first = self.emitted * self._spec.frames
        self._grids.add([(index, frame) for index, frame in samples if index >= first])

    def _push_audio(self, chunk: AudioChunk) -> None:
        # Audio that resumes is placed at its own time exactly, or it would stay shifted.
        new = align_audio(self._mel.written, chunk, 0.0 if self._mel.padded else JITTER)
        late = self._time() - chunk.start
        if late > 0 and len(new) < len(chunk.samples):
            self.late_audio += min(late, len(chunk.samples) / SAMPLE_RATE)
        self._mel.push(new)
        self.duration = max(self.duration, self._mel.written / SAMPLE_RATE)

    def _end(self, kind: type) -> None:
        if kind in self._open:
            self._open.discard(kind)
            if kind is VideoFrame:
                self._add_samples(self._sampler.finish())
            else:
                self._mel.finish()

    def _time(self) -> float:
        """Start of the next window."""
        return float(self.emitted * self._spec.seconds)

    def _passed(self) -> set[type]:
        """Streams that are past the end of the next window."""
        passed = set()
        if self._sampler.decided >= (self.emitted + 1) * self._spec.frames:
            passed.add(VideoFrame)
        if self._mel.frames >= (self.emitted + 1) * self._spec.mel_frames:
            passed.add(AudioChunk)
        return passed

    def _ready(self) -> bool:
        passed = self._passed()
        missing = self._open - passed
        if passed and missing and self._max_lead is not None:
            lead = max(self._last_frame, self._mel.written / SAMPLE_RATE) - self._time()
            if lead >= self._spec.seconds + self._max_lead:
                self._not_awaited |= missing
        return bool(passed) and missing <= self._not_awaited

    def _emit_ready(self) -> Iterator[Window]:
        while self._ready():
            yield self.emit()
