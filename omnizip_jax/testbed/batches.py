"""What the training reads: labelled windows, and a bank of encoded ones to make clips from."""

from __future__ import annotations

# pyright: reportArgumentType=false, reportReturnType=false
# Batches and windows are made of numpy arrays; their fields are declared for the device.
import dataclasses
import functools
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8

from omnizip_jax import prompt as prompts
from omnizip_jax.media import load_clip
from omnizip_jax.media.pixels import patchify
from omnizip_jax.media.sound import clip_log_mel
from omnizip_jax.models.qwen2_5_omni import positions as tmrope
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.testbed.clips import (
    COLOURS,
    SHAPES,
    SIDE,
    SLOTS_PER_WINDOW,
    SOUNDS,
    SPEC,
    Difficulty,
    TestClip,
    Thing,
    draw_things,
)
from omnizip_jax.testbed.questions import Question, draw_questions
from omnizip_jax.types import Window

COLOUR_IDS = {None: 0} | {name: i for i, name in enumerate(COLOURS, start=1)}
SHAPE_IDS = {None: 0} | {name: i for i, name in enumerate(SHAPES, start=1)}
SOUND_IDS = {None: 0} | {name: i for i, name in enumerate(SOUNDS, start=1)}
TARGETS = {"colour": len(COLOUR_IDS), "shape": len(SHAPE_IDS), "sound": len(SOUND_IDS)}

GRID = SIDE // 28


def cut(clip: TestClip) -> Window:
    """The windows of a clip as ``load_clip`` cuts them, without resizing and resampling."""
    pairs = clip.frames.reshape(-1, 2, *clip.frames.shape[1:])
    patches = np.stack([patchify(pair, 14, 2) for pair in pairs])
    mel = clip_log_mel(clip.waveform, 128)
    return _windows(patches.reshape(-1, 2, *patches.shape[1:]), mel.reshape(128, -1, 200))


def reread(clip: TestClip) -> Window:
    """The windows of a clip that was written to an mp4 and read again."""
    with tempfile.TemporaryDirectory() as folder:
        windows = load_clip(clip.write(Path(folder) / "clip.mp4"), SPEC).windows
    count = len(clip.cells) // SLOTS_PER_WINDOW  # codecs append some silence
    return _windows(windows.patches[:count], windows.mel[:count].transpose(1, 0, 2))


def _windows(patches: np.ndarray, mel: np.ndarray) -> Window:
    empty = Window.empty(SPEC, len(patches))
    return empty.replace(
        patches=patches,
        grid_size=empty.grid_size * GRID,
        grid_mask=~empty.grid_mask,
        mel=mel.transpose(1, 0, 2),
        mel_length=empty.mel_length + SPEC.mel_frames,
    )


class EncoderBatch(struct.PyTreeNode):
    """Grids and windows of sound, and what is in each token: 0 for nothing."""

    patches: UInt8[Array, "N patches values"]
    colour: Int[Array, "N P"]
    shape: Int[Array, "N P"]
    mel: Float[Array, "M bins frames"]
    sound: Int[Array, "M A"]

    @classmethod
    def of(cls, clips: Sequence[TestClip]) -> EncoderBatch:
        windows = [cut(clip) for clip in clips]
        labels = [token_labels(clip) for clip in clips]
        return cls(
            patches=np.concatenate([w.patches.reshape(-1, *w.patches.shape[2:]) for w in windows]),
            mel=np.concatenate([w.mel for w in windows]),
            **{name: np.concatenate([label[name] for label in labels]) for name in TARGETS},
        )


def token_labels(clip: TestClip) -> dict[str, np.ndarray]:
    """Colour and shape of every video token, sound of every audio token."""

    def label(ids: dict, name: str, index: np.ndarray) -> np.ndarray:
        table = np.array([ids[getattr(thing, name)] for thing in clip.things] + [0])
        return table[index]  # index -1 is the 0 at the end

    return {
        "colour": label(COLOUR_IDS, "colour", clip.cells),
        "shape": label(SHAPE_IDS, "shape", clip.cells),
        "sound": label(SOUND_IDS, "sound", clip.active).reshape(-1, SPEC.audio_slots),
    }


Encode = Callable[[Window], tuple[np.ndarray, np.ndarray]]


class Bank:
    """Encoded grids and windows of sound, by what is in them; any clip can be put together.

    Args:
        clips: of equal length.
        encode: windows to video [W, G, P, D] and audio [W, A, D] embeddings.
        read: a clip to windows: ``cut`` or ``reread``.
    """

    def __init__(
        self,
        clips: Iterable[TestClip],
        encode: Encode,
        read: Callable[[int, TestClip], Window] = lambda _, clip: cut(clip),
    ):
        self.things: list[tuple[Thing, ...]] = []
        video, audio, labels = [], [], defaultdict(list)
        for index, clip in enumerate(clips):
            grids, sounds = encode(read(index, clip))
            video.append(grids.reshape(-1, *grids.shape[2:]).astype(np.float16))
            audio.append(sounds.astype(np.float16))
            self.things.append(clip.things)
            for name, values in token_labels(clip).items():
                labels[name].append(values)
        self.video, self.audio = np.concatenate(video), np.concatenate(audio)
        self.labels = {name: np.concatenate(values) for name, values in labels.items()}
        self._grids, self._sounds = defaultdict(list), defaultdict(list)
        slots = len(self.video) // len(self.things)
        for clip, things in enumerate(self.things):
            for slot in range(slots):
                self._grids[_seen(things, slot)].append(clip * slots + slot)
            for window in range(slots // SLOTS_PER_WINDOW):
                place = clip * (slots // SLOTS_PER_WINDOW) + window
                self._sounds[_heard(things, window)].append(place)
        self._slots = slots

    def whole(self, clip: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of the grids and the windows of sound of a clip as it was."""
        grids = np.arange(self._slots) + clip * self._slots
        return grids, grids[::SLOTS_PER_WINDOW] // SLOTS_PER_WINDOW

    def find(
        self, things: tuple[Thing, ...], windows: int, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Places of grids and windows of sound that show and play these things, if there are."""
        grids = [self._grids.get(_seen(things, i)) for i in range(windows * SLOTS_PER_WINDOW)]
        sounds = [self._sounds.get(_heard(things, i)) for i in range(windows)]
        if not (all(grids) and all(sounds)):
            return None
        return tuple(
            np.array([places[random.integers(len(places))] for places in found if places])
            for found in (grids, sounds)
        )


def _seen(things, slot):
    return frozenset((t.colour, t.shape) for t in things if t.slot == slot)


def _heard(things, window):
    first = window * SLOTS_PER_WINDOW
    events = [t for t in things if t.sound and first <= t.slot < first + SLOTS_PER_WINDOW]
    return frozenset((t.slot - first, t.sound, t.long) for t in events)


@dataclasses.dataclass(frozen=True)
class Lesson:
    """How clips are put together for the decoder.

    Attributes:
        difficulty: what happens in them.
        windows: of a clip.
        rounds: questions asked about it, one after the other.
        video_tokens, audio_tokens: of each grid and of each window; fewer than all are drawn, more
            of them where something is.
        kinds: of questions; None for all.
        whole: clips as they were, not put together from the bank.
        system: the system prompt.
    """

    difficulty: Difficulty
    windows: int = 4
    rounds: int = 4
    video_tokens: int = GRID**2
    audio_tokens: int = SPEC.audio_slots
    kinds: tuple[str, ...] | None = None
    whole: bool = False
    system: str = prompts.DEFAULT_SYSTEM


class DecoderBatch(struct.PyTreeNode):
    """Clips and the dialogues about them.

    Attributes:
        prefix: the prompt before the media.
        media: embeddings of the chosen tokens, window after window, in each video then audio.
        positions: of the whole sequence: prefix, media, text.
        labels: of the media tokens, for the auxiliary heads. Colour and shape of a video token are
            its own, those of an audio token of what is seen alone in the same second.
        text: dialogue after the media, padded.
        answer: 0 where the next token is not learned, else the number of the round, from 1.
    """

    prefix: Int[Array, "P"]
    media: Float[Array, "B M D"]
    positions: Int[Array, "B 3 T"]
    labels: dict[str, Int[Array, "B M"]]
    text: Int[Array, "B S"]
    answer: Int[Array, "B S"]


class Dialogues:
    """Draws batches of clips and dialogues from a bank."""

    def __init__(self, bank: Bank, tokenizer: Any, config: ModelConfig):
        self._bank, self._tokenizer, self._config = bank, tokenizer, config
        self._suffixes: dict[str, np.ndarray] = {}
        self._answers: dict[str, int] = {}

    def draw(self, random: np.random.Generator, lesson: Lesson, size: int) -> DecoderBatch:
        prompt = prompts.build(
            self._tokenizer,
            self._config,
            "-",
            audio=True,
            video=True,
            system=lesson.system,
        )
        start = int(prompt.prefix_positions[-1]) + 1
        clips = [self._draw_clip(random, lesson, start) for _ in range(size)]
        media, positions, labels, things = zip(*clips, strict=True)
        dialogues = [draw_questions(t, random, lesson.rounds, lesson.kinds) for t in things]
        text, answer = self._write(dialogues)
        after = start + lesson.windows * self._config.window_positions
        follows = after + np.maximum(np.arange(text.shape[1]) - 1, 0)  # the end tokens share one

        def whole(middle: np.ndarray) -> np.ndarray:
            parts = [
                np.tile(prompt.prefix_positions, (3, 1)),
                middle,
                np.tile(follows, (3, 1)),
            ]
            return np.concatenate(parts, axis=1).astype(np.int32)

        return DecoderBatch(
            prefix=prompt.prefix,
            media=np.stack(media).astype(np.float32),
            positions=np.stack([whole(p) for p in positions]),
            labels={name: np.stack([label[name] for label in labels]) for name in labels[0]},
            text=text,
            answer=answer,
        )

    def _draw_clip(self, random: np.random.Generator, lesson: Lesson, start: int):
        bank = self._bank
        if lesson.whole:
            clip = int(random.integers(len(bank.things)))
            things, places = bank.things[clip], bank.whole(clip)
        else:
            places = None
            while places is None:
                things = draw_things(random, lesson.difficulty, lesson.windows)
                places = bank.find(things, lesson.windows, random)
        grids, sounds = places
        alone = {t.slot: t for t in things if sum(o.slot == t.slot for o in things) == 1}
        none = Thing(-1, None, None)
        nearby = [alone.get(slot, none) for slot in range(len(grids))]

        def beside(ids: dict, name: str) -> np.ndarray:
            """What is seen alone in the slot of each audio token."""
            values = [ids[getattr(thing, name)] for thing in nearby]
            return np.repeat(values, SPEC.audio_slots // SLOTS_PER_WINDOW).reshape(
                -1, SPEC.audio_slots
            )

        colour, shape, sound = (bank.labels[name] for name in ("colour", "shape", "sound"))
        chosen, offset = [], 0
        for window, place in enumerate(sounds):
            for grid in grids[2 * window : 2 * window + 2]:
                chosen.append(offset + _pick(random, colour[grid] > 0, lesson.video_tokens))
                offset += GRID**2
            chosen.append(offset + _pick(random, sound[place] > 0, lesson.audio_tokens))
            offset += SPEC.audio_slots
        chosen = np.concatenate(chosen)

        def lay_out(video: np.ndarray, audio: np.ndarray) -> np.ndarray:
            video = video.reshape(len(sounds), -1, *video.shape[2:])
            both = np.concatenate([video, audio], axis=1)
            return both.reshape(-1, *both.shape[2:])[chosen]

        labels = {
            "colour": lay_out(colour[grids], beside(COLOUR_IDS, "colour")),
            "shape": lay_out(shape[grids], beside(SHAPE_IDS, "shape")),
            "sound": lay_out(np.zeros_like(colour[grids]), sound[sounds]),
        }
        media = lay_out(bank.video[grids], bank.audio[sounds])
        return media, clip_positions(len(sounds), start)[:, chosen], labels, things

    def _write(self, dialogues: list[list[Question]]) -> tuple[np.ndarray, np.ndarray]:
        longest = 20 * len(dialogues[0])
        text = np.zeros((len(dialogues), longest), np.int32)
        answer = np.zeros_like(text)
        for row, questions in enumerate(dialogues):
            at = 0
            for number, question in enumerate(questions, start=1):
                turn = self._turn(question.text)
                if number > 1:  # the media came before the first turn
                    turn = np.concatenate([self._between, turn[2:]])
                text[row, at : at + len(turn)] = turn
                at += len(turn)
                answer[row, at - 1 : at + 1] = number
                text[row, at : at + 2] = self._answer(question.answer), self._end
                at += 1 if number < len(questions) else 2
        return text, answer

    def _turn(self, question: str) -> np.ndarray:
        if question not in self._suffixes:
            built = prompts.build(self._tokenizer, self._config, question, audio=True, video=True)
            self._suffixes[question] = built.suffix
        return self._suffixes[question]

    def _answer(self, answer: str) -> int:
        if answer not in self._answers:
            (self._answers[answer],) = self._tokenizer.encode(answer)
        return self._answers[answer]

    @property
    def _end(self) -> int:
        return self._tokenizer.eos_token_id

    @property
    def _between(self) -> np.ndarray:
        return np.array(self._tokenizer.encode("<|im_end|>\n<|im_start|>user\n"), np.int32)


def _pick(random: np.random.Generator, busy: Bool[np.ndarray, " T"], count: int) -> np.ndarray:
    """Draw ``count`` places, half of them where something is."""
    if count >= len(busy):
        return np.arange(len(busy))
    order = random.random(len(busy))
    places = np.flatnonzero(busy)
    first = places[np.argsort(order[places])][: count // 2]
    order[first] = -1
    return np.sort(np.argsort(order)[:count])


@functools.cache
def clip_positions(windows: int, start: int) -> Int[np.ndarray, "3 slots"]:
    """TMRoPE positions of every token of a clip whose first window begins at ``start``."""
    empty = Window.empty(SPEC)
    layout = empty.replace(grid_size=empty.grid_size * GRID, grid_mask=~empty.grid_mask)
    each = [
        tmrope.window_positions(
            layout, start + SPEC.positions * i, start, GRID**2, SPEC.audio_slots
        )
        for i in range(windows)
    ]
    return np.concatenate(each, axis=1)
