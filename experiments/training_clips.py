"""Training clips of the small model: token labels and encoded clips that can be combined."""

from __future__ import annotations

# pyright: reportArgumentType=false, reportReturnType=false
# Batches are made of numpy arrays; their fields are declared for the device.
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, UInt8

from experiments.clip_inputs import clip_to_windows, clip_to_windows_by_file
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.encoders import encode_windows
from omnizip_jax.testbed.synthetic_clips import (
    COLOURS,
    DIFFICULTIES,
    SHAPES,
    SOUNDS,
    SPEC,
    ClipObject,
    Difficulty,
    SyntheticClip,
    default_windows,
    make_clip,
    random_generator,
    render,
)
from omnizip_jax.types import Window

COLOUR_IDS = {None: 0} | {name: i for i, name in enumerate(COLOURS, start=1)}
SHAPE_IDS = {None: 0} | {name: i for i, name in enumerate(SHAPES, start=1)}
SOUND_IDS = {None: 0} | {name: i for i, name in enumerate(SOUNDS, start=1)}
TARGETS = {"colour": len(COLOUR_IDS), "shape": len(SHAPE_IDS), "sound": len(SOUND_IDS)}

# A third of the training clips is easy, moving or long; ROUGH adds small shapes and noise.
ROUGH = Difficulty((2, 4), (1, 2), 2, (14, 22), (2, 5), 36, 1.2e-2, (0.03, 0.2), (0, 6))
TRAINING_DIFFICULTIES = (
    DIFFICULTIES["easy"],
    ROUGH,
    DIFFICULTIES["moving"],
    DIFFICULTIES["long"],
)

Objects = tuple[ClipObject, ...]
Encode = Callable[[Window], tuple[np.ndarray, np.ndarray]]


class EncoderBatch(struct.PyTreeNode):
    """Grids and audio windows with a label for every token, 0 for none."""

    patches: UInt8[Array, "N patches values"]
    colour: Int[Array, "N P"]
    shape: Int[Array, "N P"]
    mel: Float[Array, "M bins frames"]
    sound: Int[Array, "M A"]

    @classmethod
    def of(cls, clips: Iterable[SyntheticClip]) -> EncoderBatch:
        windows, labels = zip(*((clip_to_windows(c), token_labels(c)) for c in clips), strict=True)
        return cls(
            patches=np.concatenate([w.patches.reshape(-1, *w.patches.shape[2:]) for w in windows]),
            mel=np.concatenate([w.mel for w in windows]),
            **{name: np.concatenate([label[name] for label in labels]) for name in TARGETS},
        )


def token_labels(clip: SyntheticClip) -> dict[str, np.ndarray]:
    """Colour and shape of every video token, sound of every audio token."""

    def label(ids: dict, name: str, index: np.ndarray) -> np.ndarray:
        table = np.array([ids[getattr(obj, name)] for obj in clip.objects] + [0])
        return table[index]  # index -1 is the 0 at the end

    return {
        "colour": label(COLOUR_IDS, "colour", clip.video_objects),
        "shape": label(SHAPE_IDS, "shape", clip.video_objects),
        "sound": label(SOUND_IDS, "sound", clip.audio_objects).reshape(-1, SPEC.audio_slots),
    }


def encoder_batch(seed: int, step: int, clips: int) -> EncoderBatch:
    """Clips of one training step of the encoders, with an object and a sound in every second."""
    first = (seed * 10_000 + step) * 100
    return EncoderBatch.of([_dense_clip(first + i) for i in range(clips)])


def _dense_clip(seed: int, windows: int = 2) -> SyntheticClip:
    """A clip with one object per second, or three small ones of which one has a sound."""
    random = random_generator("train", seed)
    difficulty = TRAINING_DIFFICULTIES[random.integers(len(TRAINING_DIFFICULTIES))]
    crowded = random.random() < 0.6
    if crowded:  # three objects of at most this radius always fit
        difficulty = dataclasses.replace(difficulty, radius=(12, 24))
    objects = []
    for second in range(windows * SPEC.seconds):
        colours = random.permutation(list(COLOURS))[: 3 if crowded else 1].tolist()
        shapes = random.choice(SHAPES, len(colours)).tolist()
        sound = str(random.choice(SOUNDS)), bool(random.integers(2))
        objects.append(ClipObject(second, colours[0], shapes[0], *sound))
        objects += [ClipObject(second, *pair) for pair in zip(colours[1:], shapes[1:], strict=True)]
    return render(tuple(objects), random, difficulty, windows)


class EncodedClips:
    """Encoded grids and audio windows by content, from which clips with any objects are combined.

    Args:
        clips: of any lengths.
        encode: windows to video [W, G, P, D] and audio [W, A, D] embeddings.
        to_windows: index and clip to windows.
        consistent: number of clips, from the first, in which every colour has one shape, so that
            they can be used unchanged. All by default.
    """

    def __init__(
        self,
        clips: Iterable[SyntheticClip],
        encode: Encode,
        to_windows: Callable[[int, SyntheticClip], Window] = lambda _, clip: clip_to_windows(clip),
        consistent: int | None = None,
    ):
        self.objects: list[Objects] = []
        self.windows: list[int] = []
        video, audio, labels = [], [], defaultdict(list)
        for index, clip in enumerate(clips):
            clip_video, clip_audio = encode(to_windows(index, clip))
            video.append(clip_video.reshape(-1, *clip_video.shape[2:]).astype(np.float16))
            audio.append(clip_audio.astype(np.float16))
            self.objects.append(clip.objects)
            self.windows.append(len(clip_audio))
            for name, values in token_labels(clip).items():
                labels[name].append(values)
        self.video, self.audio = np.concatenate(video), np.concatenate(audio)
        self.labels = {name: np.concatenate(values) for name, values in labels.items()}
        self.consistent = len(self.objects) if consistent is None else consistent
        self._starts = np.cumsum([0, *self.windows])
        self._grids, self._audio = defaultdict(list), defaultdict(list)
        for objects, start, windows in zip(self.objects, self._starts, self.windows, strict=False):
            for window in range(windows):
                self._audio[_audio_content(objects, window)].append(start + window)
            for second in range(windows * SPEC.seconds):
                self._grids[_video_content(objects, second)].append(start * SPEC.seconds + second)

    def unchanged(self, clip: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the grids and audio windows of an original clip."""
        audio = self._starts[clip] + np.arange(self.windows[clip])
        first = SPEC.seconds * self._starts[clip]
        return first + np.arange(SPEC.seconds * self.windows[clip]), audio

    def available(self, objects: Objects) -> Objects:
        """The objects without those whose second or window has content that no clip has."""
        while True:
            unknown = [
                obj
                for obj in objects
                if _video_content(objects, obj.second) not in self._grids
                or _audio_content(objects, obj.second // SPEC.seconds) not in self._audio
            ]
            if not unknown:
                return objects
            objects = tuple(obj for obj in objects if obj != unknown[-1])

    def combine(
        self, objects: Objects, windows: int, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Indices of grids and audio windows that contain these objects.

        Raises:
            ValueError: no clip has the content of a second or window.
        """

        def draw(known: dict[Any, list[int]], wanted: list[Any]) -> np.ndarray:
            missing = [content for content in wanted if content not in known]
            if missing:
                raise ValueError(f"no encoded clip has {missing[0]}: encode more clips")
            return np.array([known[x][random.integers(len(known[x]))] for x in wanted])

        seconds = range(windows * SPEC.seconds)
        grids = draw(self._grids, [_video_content(objects, second) for second in seconds])
        return grids, draw(self._audio, [_audio_content(objects, w) for w in range(windows)])


def _video_content(objects, second):
    return frozenset((obj.colour, obj.shape) for obj in objects if obj.second == second)


def _audio_content(objects, window):
    first = window * SPEC.seconds
    own = [o for o in objects if o.sound and first <= o.second < first + SPEC.seconds]
    return frozenset((obj.second - first, obj.sound, obj.long) for obj in own)


def encoder_function(params: Any, config: ModelConfig) -> Encode:
    """The encoders of these parameters as ``EncodedClips`` calls them."""
    backend = Backend.of(params)

    def encode(windows: Window) -> tuple[np.ndarray, np.ndarray]:
        encoded = encode_windows(params, windows, config=config, backend=backend)
        return np.asarray(encoded.video), np.asarray(encoded.audio.tokens)

    return encode


def encode_training_clips(
    params: Any, config: ModelConfig, clips: int, seed: int
) -> list[tuple[Difficulty, EncodedClips]]:
    """Encode clips of every training difficulty.

    A third of them is drawn by the difficulty, every sixth of these goes through an mp4 file. The
    others cover all combinations of content; the audio of every fourth is normalised per window.
    """

    def to_windows(index: int, clip: SyntheticClip) -> Window:
        if index < clips // 3:
            return clip_to_windows_by_file(clip) if index % 6 == 0 else clip_to_windows(clip)
        return clip_to_windows(clip, separate_audio=index % 4 == 0)

    encode, out = encoder_function(params, config), []
    for number, difficulty in enumerate(TRAINING_DIFFICULTIES):
        first = 10**9 * (seed + 1) + number * 10**6
        random = random_generator("train", first)
        combinations = all_audio_content(random, difficulty.max_silent, clips - clips // 3)
        longer = 30 if difficulty.max_occurrences > 1 else 8  # windows of every tenth clip
        made = itertools.chain(
            (
                make_clip(first + 1 + i, "train", difficulty, 4 if i % 10 else longer)
                for i in range(clips // 3)
            ),
            (render(objects, random, difficulty, 4) for objects in combinations),
        )
        out.append((difficulty, EncodedClips(made, encode, to_windows, consistent=clips // 3)))
    return out


def all_audio_content(
    random: np.random.Generator, max_silent: int, clips: int
) -> Iterator[Objects]:
    """Objects of clips of four windows which together have every possible audio content."""
    kinds = [None, *itertools.product(SOUNDS, (False, True))]
    pairs = list(itertools.product(kinds, kinds)) + [(None, None)] * 70
    order = [random.permutation(len(pairs)) for _ in range(4 * clips // len(pairs) + 1)]
    drawn = [pairs[i] for i in np.concatenate(order)]
    for clip in range(clips):
        objects = []
        for window in range(4):
            for second, sound in enumerate(drawn[4 * clip + window]):
                count = 1 if sound else random.integers(max_silent + 1)
                colours = random.permutation(list(COLOURS))[:count].tolist()
                objects += [
                    ClipObject(
                        2 * window + second, colour, str(random.choice(SHAPES)), *(sound or ())
                    )
                    for colour in colours
                ]
        yield tuple(objects)


def encode_validation_clips(
    params: Any, config: ModelConfig, clips: int
) -> dict[str, EncodedClips]:
    """Encode validation clips of every difficulty, of at most a minute."""
    encode, out = encoder_function(params, config), {}
    for name, difficulty in DIFFICULTIES.items():
        lengths = [min(default_windows(i, difficulty), 30) for i in range(clips)]
        made = (make_clip(i, "validation", difficulty, n) for i, n in enumerate(lengths))
        out[name] = EncodedClips(made, encode)
    return out
