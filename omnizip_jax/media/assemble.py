"""Pictures and sounds to windows, one window at a time. No threads, no waiting: see ``live``."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from omnizip_jax.config import WindowSpec
from omnizip_jax.media.clock import End, FrameSampler, Picture, Sound, check_jump, continue_sound
from omnizip_jax.media.live_sound import MelStream
from omnizip_jax.media.sound import SAMPLE_RATE
from omnizip_jax.media.windowing import Grids, count_windows, cut_windows
from omnizip_jax.types import Window


class Assembler:
    """Cuts a stream by the window clock: window j covers ``spec.seconds`` from ``j * seconds``.

    A window is ready when picture and sound have both passed its end, or have ended. What comes
    for a window after it has been given out is dropped and counted.

    Args:
        spec: shape of the windows.
        has_video, has_audio: streams to wait for.
        lead: when one stream is so many seconds past the end of a window, the other one is given
            up for it, and not waited for again until it comes back; None waits, until
            ``give_up``.

    Attributes:
        maximum: largest loudness of the whole sound; set it before the first window if known.
        emitted: windows given out.
        incomplete: those among them that were not waited for to the end.
        late_frames: pictures dropped because their window was gone.
        late_sound: seconds of sound dropped for that reason.
        duration: end of all picture and sound so far, seconds.
    """

    def __init__(
        self,
        spec: WindowSpec,
        *,
        has_video: bool,
        has_audio: bool,
        lead: float | None = None,
    ):
        self.maximum: float | None = None
        self.emitted = self.incomplete = self.late_frames = 0
        self.late_sound = self.duration = 0.0
        self._spec, self._lead = spec, lead
        self._spacing = spec.seconds / spec.frames
        self._sampler = FrameSampler(self._spacing)
        self._grids = Grids(spec)
        self._mel = MelStream(spec.mel_bins)
        self._seen = 0.0  # start of the last picture
        self._coming = {kind for kind, has in ((Picture, has_video), (Sound, has_audio)) if has}
        self._absent: set[type] = set()  # of those, given up for the time being

    def push(self, event: Picture | Sound | End) -> Iterator[Window]:
        """Take what comes next; yields the windows that are now ready.

        Raises:
            ValueError: a picture or sound that cannot be used.
        """
        if isinstance(event, End):
            self._end(Picture if event.video else Sound)
        else:
            self._absent.discard(type(event))
            self._picture(event) if isinstance(event, Picture) else self._sound(event)
        while self._ready():
            yield self.emit()

    @property
    def torn(self) -> bool:
        """Whether the next window has one stream, and waits for the other."""
        return bool(self._passed()) and not self._ready()

    def give_up(self) -> Iterator[Window]:
        """Wait no longer for what the next window lacks, until it comes back."""
        self._absent |= self._coming - self._passed()
        while self._ready():
            yield self.emit()

    def emit(self) -> Window:
        """The next window, with what there is of it."""
        missing = self._coming - self._passed()
        if missing:
            self.incomplete += 1
        if Picture in missing:  # the last picture is not held across what is lost
            self._add(self._sampler.finish())
            self._sampler = FrameSampler(self._spacing)
        self.emitted += 1
        spec = self._spec
        windows = cut_windows(
            self._grids.take(self.emitted * spec.grids),
            self._mel.take(self.emitted * spec.mel_frames, self.maximum),
            spec.seconds / spec.grids,
            spec,
            self._grids.cells,
            count=1,
            first=self.emitted - 1,
        )
        if Sound in self._coming:
            self._mel.silence_until(self.emitted * spec.seconds * SAMPLE_RATE)
        return jax.tree.map(lambda leaf: np.asarray(leaf[0]), windows)

    def finish(self) -> Iterator[Window]:
        """The last windows, when nothing follows.

        Raises:
            ValueError: nothing has come at all.
        """
        self._end(Picture)
        self._end(Sound)
        if not (self.emitted or self._grids.end or self._mel.written):
            raise ValueError("no picture and no sound could be decoded")
        seconds = self._spec.seconds / self._spec.grids
        count = count_windows(self._grids.end, self._mel.frames, seconds, self._spec)
        while self.emitted < count:
            yield self.emit()

    def _picture(self, picture: Picture) -> None:
        self._grids.fit(picture)
        if self._sampler.intervals(picture.start) < self.emitted * self._spec.frames:
            self.late_frames += 1
            return
        check_jump(max(self._seen, self._time()), picture.start, "video")
        self._seen = picture.start
        self.duration = max(self.duration, picture.end)
        self._add(self._sampler.push(picture))

    def _add(self, samples) -> None:
        first = self.emitted * self._spec.frames
        self._grids.add([(index, picture) for index, picture in samples if index >= first])

    def _sound(self, sound: Sound) -> None:
        # Sound that is back is put at its own time exactly, or it would stay shifted.
        jitter = {"jitter": 0.0} if self._mel.silent else {}
        new = continue_sound(self._mel.written, sound, **jitter)
        late = self._time() - sound.start
        if late > 0 and len(new) < len(sound.samples):
            self.late_sound += min(late, len(sound.samples) / SAMPLE_RATE)
        self._mel.push(new)
        self.duration = max(self.duration, self._mel.written / SAMPLE_RATE)

    def _end(self, kind: type) -> None:
        if kind in self._coming:
            self._coming.discard(kind)
            if kind is Picture:
                self._add(self._sampler.finish())
            else:
                self._mel.finish()

    def _time(self) -> float:
        """Start of the next window."""
        return float(self.emitted * self._spec.seconds)

    def _passed(self) -> set[type]:
        """Streams that have everything for the next window."""
        passed = set()
        if self._sampler.decided >= (self.emitted + 1) * self._spec.frames:
            passed.add(Picture)
        if self._mel.frames >= (self.emitted + 1) * self._spec.mel_frames:
            passed.add(Sound)
        return passed

    def _ready(self) -> bool:
        passed = self._passed()
        missing = self._coming - passed
        if passed and missing and self._lead is not None:
            head = max(self._seen, self._mel.written / SAMPLE_RATE)
            if head >= self._time() + self._spec.seconds + self._lead:
                self._absent |= missing
        return bool(passed) and missing <= self._absent
