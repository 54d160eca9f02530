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


class WindowBuilder:
    """Samples frames, transforms audio, and builds windows of both, in order.

    Args:
        spec: shape of the windows.
        spacing: seconds from one sampled frame to the next; None: ``spec.seconds / spec.frames``.
        max_frames: samples from this one on are ignored.

    Attributes:
        sampler: selects the frames.
        mel: the audio so far.
        cells: rows and columns of tokens, from the first frame; None before it.
        video_end: end of the video so far, seconds.
        emitted: windows built.
    """

    def __init__(
        self, spec: WindowSpec, spacing: float | None = None, max_frames: int | None = None
    ):
        self.spec = spec
        self.sampler = FrameSampler(spacing or spec.seconds / spec.frames)
        self.mel = MelStream(spec.mel_bins)
        self.cells: tuple[int, int] | None = None
        self.video_end, self.emitted = 0.0, 0
        self._max_frames = max_frames
        self._grids: dict[int, np.ndarray] = {}  # patches of each grid
        self._end = 0  # one more than the last grid so far
        self._frames: dict[int, np.ndarray] = {}  # of the last grid
        self._rendered, self._pixels = None, np.zeros(0)

    @property
    def seconds_per_grid(self) -> float:
        return self.sampler.spacing * self.spec.temporal_patch

    @property
    def duration(self) -> float:
        """End of all video and audio so far, seconds."""
        return max(self.video_end, self.mel.written / SAMPLE_RATE)

    @property
    def count(self) -> int:
        """Number of windows of the media so far; 0 if there were none, else at least 1."""
        if not (self._end or self.mel.written):
            return 0
        by_audio = -(-(self.mel.frames - self.spec.min_mel_frames + 1) // self.spec.mel_frames)
        return max(1, self._place(self._end - 1)[0] + 1 if self._end else 0, by_audio)

    def push_frame(self, frame: VideoFrame) -> None:
        """Add the next frame; the first one decides the shape of all grids.

        Raises:
            ValueError: a frame of a shape that cannot be used, or a jump of its time.
        """
        if self.cells is None:
            self.cells = fit_grid(frame.height, frame.width, self.spec.grid_slots)
        self.video_end = max(self.video_end, frame.end)
        self._add(self.sampler.push(frame))

    def push_audio(self, chunk: AudioChunk) -> Float[np.ndarray, " samples"]:
        """Add audio; returns the samples that were added, see ``align_audio``."""
        # Audio that resumes is placed at its own time exactly, or it would stay shifted.
        new = align_audio(self.mel.written, chunk, 0.0 if self.mel.padded else JITTER)
        self.mel.push(new)
        return new

    def finish_video(self) -> None:
        """Add the last frames, when none follows."""
        self._add(self.sampler.finish())

    def build(self, count: int, maximum: float | None = None) -> Window:
        """The next ``count`` windows of the media so far: numpy leaves with a leading axis.

        Args:
            maximum: see ``MelStream.take``.
        """
        spec, first = self.spec, self.emitted
        self.emitted += count
        if self._end and self._place(self._end - 1)[0] < self.emitted:
            self._close()
        windows = Window.empty(spec, count)
        # Pages of zeros that are never written to take no memory.
        patches = np.zeros(windows.patches.shape, np.uint8) if self._grids else windows.patches
        mask, time = np.asarray(windows.grid_mask), np.asarray(windows.grid_time)
        for grid in sorted(self._grids):
            window, offset = self._place(grid)
            if window >= self.emitted:
                break
            values = self._grids.pop(grid)  # one by one: a long clip is not stored twice
            slot = mask[window - first].sum()
            patches[window - first, slot, : len(values)] = values
            mask[window - first, slot] = True
            time[window - first, slot] = offset

        frames = spec.mel_frames
        mel = self.mel.take(self.emitted * frames, maximum)
        bins, length = mel.shape
        padded = np.pad(mel, ((0, 0), (0, count * frames - length)))
        leaves: dict[str, Any] = {  # numpy here; arrays of the device once they are used
            "patches": patches,
            "grid_size": np.tile(np.array(self.cells or (1, 1), np.int32), (count, 1)),
            "mel": np.ascontiguousarray(padded.reshape(bins, count, -1).transpose(1, 0, 2)),
            "mel_length": np.clip(length - frames * np.arange(count), 0, frames).astype(np.int32),
        }
        return windows.replace(**leaves)

    def _add(self, samples: list[tuple[int, VideoFrame]]) -> None:
        spec, late = self.spec, self.emitted * self.spec.frames
        for index, frame in samples:
            if index < late or (self._max_frames is not None and index >= self._max_frames):
                continue
            if frame is not self._rendered:
                assert self.cells is not None
                height, width = (cells * spec.merge * spec.patch for cells in self.cells)
                self._rendered, self._pixels = frame, frame.render(height, width)
            grid, place = divmod(index, spec.temporal_patch)
            if grid >= self._end:
                self._close()
                self._end = grid + 1
            self._frames[place] = self._pixels

    def _close(self) -> None:
        """Cut the frames of the last grid into patches; a grid of fewer frames repeats them."""
        spec = self.spec
        if self._frames:
            first, last = min(self._frames), max(self._frames)
            frames = [self._frames[min(max(i, first), last)] for i in range(spec.temporal_patch)]
            self._grids[self._end - 1] = patchify(np.stack(frames), spec.patch, spec.merge)
            self._frames = {}

    def _place(self, grid: int) -> tuple[int, int]:
        """Window of a grid, and its position there."""
        per_second = self.spec.positions_per_second
        position = grid_position(grid, self.seconds_per_grid, per_second)
        return divmod(position, self.spec.positions)


class WindowAssembler(WindowBuilder):
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
        incomplete: windows that were emitted without waiting for both streams.
        late_frames: frames dropped because their window had been emitted.
        late_audio: seconds of audio dropped for that reason.
    """

    def __init__(
        self,
        spec: WindowSpec,
        *,
        has_video: bool,
        has_audio: bool,
        max_lead: float | None = None,
    ):
        super().__init__(spec)
        self.maximum: float | None = None
        self.incomplete = self.late_frames = 0
        self.late_audio = 0.0
        self._max_lead = max_lead
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
            self._end_stream(VideoFrame if event.video else AudioChunk)
        else:
            self._not_awaited.discard(type(event))
            late = self._time() - event.start
            if isinstance(event, AudioChunk):
                lost = len(event.samples) - len(self.push_audio(event))
                if late > 0 and lost > 0:
                    self.late_audio += min(late, len(event.samples) / SAMPLE_RATE)
            elif self.sampler.intervals_before(event.start) < self.emitted * self.spec.frames:
                self.late_frames += 1
            else:
                check_jump(max(self._last_frame, self._time()), event.start, "video")
                self._last_frame = event.start
                self.push_frame(event)
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
            self.finish_video()
            self.sampler = FrameSampler(self.sampler.spacing)
        window = jax.tree.map(lambda leaf: np.asarray(leaf[0]), self.build(1, self.maximum))
        if AudioChunk in self._open:
            self.mel.pad_silence(self.emitted * self.spec.seconds * SAMPLE_RATE)
        return window

    def finish(self) -> Iterator[Window]:
        """Yield the last windows, when no event follows.

        Raises:
            ValueError: the stream was empty.
        """
        self._end_stream(VideoFrame)
        self._end_stream(AudioChunk)
        if not (self.emitted or self.count):
            raise ValueError("no video and no audio could be decoded")
        while self.emitted < max(1, self.count):
            yield self.emit()

    def _end_stream(self, kind: type) -> None:
        if kind in self._open:
            self._open.discard(kind)
            if kind is VideoFrame:
                self.finish_video()
            else:
                self.mel.finish()

    def _time(self) -> float:
        """Start of the next window."""
        return float(self.emitted * self.spec.seconds)

    def _passed(self) -> set[type]:
        """Streams that are past the end of the next window."""
        passed = set()
        if self.sampler.decided >= (self.emitted + 1) * self.spec.frames:
            passed.add(VideoFrame)
        if self.mel.frames >= (self.emitted + 1) * self.spec.mel_frames:
            passed.add(AudioChunk)
        return passed

    def _ready(self) -> bool:
        passed = self._passed()
        missing = self._open - passed
        if passed and missing and self._max_lead is not None:
            lead = max(self._last_frame, self.mel.written / SAMPLE_RATE) - self._time()
            if lead >= self.spec.seconds + self._max_lead:
                self._not_awaited |= missing
        return bool(passed) and missing <= self._not_awaited

    def _emit_ready(self) -> Iterator[Window]:
        while self._ready():
            yield self.emit()
