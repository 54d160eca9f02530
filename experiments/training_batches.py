"""What the training reads: labelled windows, and a bank of encoded ones to make clips from."""

from __future__ import annotations

# pyright: reportArgumentType=false, reportReturnType=false
# Batches and windows are made of numpy arrays; their fields are declared for the device.
import dataclasses
import functools
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8

from experiments.stream_memory_clips import STREAM_WINDOWS
from omnizip_jax.inference import chat_template as prompts
from omnizip_jax.media import load_clip
from omnizip_jax.media.audio import clip_log_mel
from omnizip_jax.media.pixels import patchify
from omnizip_jax.models.qwen2_5_omni import prompt as tmrope
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.testbed.clip_questions import KINDS, Question, draw_questions
from omnizip_jax.testbed.synthetic_clips import (
    CELL,
    COLOURS,
    DIFFICULTIES,
    SHAPES,
    SIDE,
    SOUNDS,
    SPEC,
    ClipObject,
    Difficulty,
    SyntheticClip,
    draw_objects,
)
from omnizip_jax.types import Window

COLOUR_IDS = {None: 0} | {name: i for i, name in enumerate(COLOURS, start=1)}
SHAPE_IDS = {None: 0} | {name: i for i, name in enumerate(SHAPES, start=1)}
SOUND_IDS = {None: 0} | {name: i for i, name in enumerate(SOUNDS, start=1)}
# What auxiliary heads of the decoder name besides: the sound before, and the seconds so far.
ELAPSED = (5, 10, 15, 20, 30, 40, 60, 90, 120, 180)
TARGETS = {"colour": len(COLOUR_IDS), "shape": len(SHAPE_IDS), "sound": len(SOUND_IDS)}
MOST_COUNTED = 7  # and more
CLASSES = TARGETS | {
    "before": len(SOUND_IDS),
    "elapsed": len(ELAPSED) + 2,
    "number": MOST_COUNTED + 1,
    "time": MOST_COUNTED + 1,
    "different": len(SOUND_IDS),
}

GRID = SIDE // CELL
LONG = DIFFICULTIES["long"]
MOST_WINDOWS = STREAM_WINDOWS  # of a clip that is put together
TURN = 24  # tokens of a question and its answer, at most


def cut(clip: SyntheticClip, live: bool = False) -> Window:
    """The windows of a clip as ``load_clip`` cuts them, without resizing and resampling.

    ``live``: every window knows the loudest of its own sound alone, which is the worst that a
    stream can do.
    """
    pairs = clip.frames.reshape(-1, 2, *clip.frames.shape[1:])
    patches = np.stack([patchify(pair, 14, 2) for pair in pairs])
    pieces = clip.waveform.reshape(len(pairs) // SPEC.seconds if live else 1, -1)
    mel = np.concatenate([clip_log_mel(piece, SPEC.mel_bins) for piece in pieces], axis=1)
    return _windows(
        patches.reshape(-1, 2, *patches.shape[1:]), mel.reshape(SPEC.mel_bins, -1, SPEC.mel_frames)
    )


def reread(clip: SyntheticClip) -> Window:
    """The windows of a clip that was written to an mp4 and read again."""
    with tempfile.TemporaryDirectory() as folder:
        windows = load_clip(clip.write(Path(folder) / "clip.mp4"), SPEC).windows
    count = len(clip.video_objects) // SPEC.seconds  # codecs append some silence
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
    def of(cls, clips: Sequence[SyntheticClip]) -> EncoderBatch:
        windows = [cut(clip) for clip in clips]
        labels = [token_labels(clip) for clip in clips]
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


Encode = Callable[[Window], tuple[np.ndarray, np.ndarray]]


class Bank:
    """Encoded grids and windows of sound, by what is in them; any clip can be put together.

    Args:
        clips: of any lengths.
        encode: windows to video [W, G, P, D] and audio [W, A, D] embeddings.
        read: a clip to windows: ``cut`` or ``reread``.
        consistent: so many of the first clips can be asked about as they are; in others a colour
            may have two shapes. All by default.
    """

    def __init__(
        self,
        clips: Iterable[SyntheticClip],
        encode: Encode,
        read: Callable[[int, SyntheticClip], Window] = lambda _, clip: cut(clip),
        consistent: int | None = None,
    ):
        self.objects: list[tuple[ClipObject, ...]] = []
        self.windows: list[int] = []
        video, audio, labels = [], [], defaultdict(list)
        for index, clip in enumerate(clips):
            grids, sounds = encode(read(index, clip))
            video.append(grids.reshape(-1, *grids.shape[2:]).astype(np.float16))
            audio.append(sounds.astype(np.float16))
            self.objects.append(clip.objects)
            self.windows.append(len(sounds))
            for name, values in token_labels(clip).items():
                labels[name].append(values)
        self.video, self.audio = np.concatenate(video), np.concatenate(audio)
        self.labels = {name: np.concatenate(values) for name, values in labels.items()}
        self.consistent = len(self.objects) if consistent is None else consistent
        self._begins = np.cumsum([0, *self.windows])
        self._grids, self._sounds = defaultdict(list), defaultdict(list)
        for objects, begins, windows in zip(self.objects, self._begins, self.windows, strict=False):
            for window in range(windows):
                self._sounds[_heard(objects, window)].append(begins + window)
            for second in range(windows * SPEC.seconds):
                self._grids[_seen(objects, second)].append(begins * SPEC.seconds + second)

    def whole(self, clip: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of the grids and the windows of sound of a clip as it was."""
        sounds = self._begins[clip] + np.arange(self.windows[clip])
        first = SPEC.seconds * self._begins[clip]
        return first + np.arange(SPEC.seconds * self.windows[clip]), sounds

    def without_unknown(self, objects: tuple[ClipObject, ...]) -> tuple[ClipObject, ...]:
        """The things without those whose second, or window, the bank has not seen, or heard."""
        while True:
            unknown = [
                obj
                for obj in objects
                if _seen(objects, obj.second) not in self._grids
                or _heard(objects, obj.second // SPEC.seconds) not in self._sounds
            ]
            if not unknown:
                return objects
            objects = tuple(obj for obj in objects if obj != unknown[-1])

    def find(
        self, objects: tuple[ClipObject, ...], windows: int, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Places of grids and windows of sound that show and play these things.

        Raises:
            ValueError: a second or a window that the bank has not.
        """

        def draw(known: dict[Any, list[int]], wanted: list[Any]) -> np.ndarray:
            missing = [content for content in wanted if content not in known]
            if missing:
                raise ValueError(f"no clip of the bank has {missing[0]}: give it more clips")
            return np.array([known[x][random.integers(len(known[x]))] for x in wanted])

        slots = range(windows * SPEC.seconds)
        grids = draw(self._grids, [_seen(objects, second) for second in slots])
        return grids, draw(self._sounds, [_heard(objects, window) for window in range(windows)])


def _seen(objects, second):
    return frozenset((t.colour, t.shape) for t in objects if t.second == second)


def _heard(objects, window):
    first = window * SPEC.seconds
    events = [t for t in objects if t.sound and first <= t.second < first + SPEC.seconds]
    return frozenset((t.second - first, t.sound, t.long) for t in events)


@dataclasses.dataclass(frozen=True)
class Lesson:
    """How clips are put together for the decoder.

    Attributes:
        slots: media tokens of a clip, at most. Of a clip that has more, some are drawn, more of
            them where something is; a shorter one is padded.
        clips: in a batch.
        rows: dialogues about a clip, which know nothing of each other.
        rounds: questions of a dialogue, one after the other.
        windows: the fewest and the most of a clip.
        again: share of the clips in which things come again.
        kinds: of questions; None for all.
        all_sound: tokens of pictures are left out before tokens of sound.
        whole: clips as they were, not put together from the bank.
        system: the system prompt.
        share: of the steps, relative to the other lessons of a stage.
    """

    slots: int
    clips: int = 8
    rows: int = 4
    rounds: int = 1
    windows: tuple[int, int] = (4, 4)
    again: float = 0.0
    kinds: tuple[str, ...] | None = None
    all_sound: bool = False
    whole: bool = False
    system: str = prompts.DEFAULT_SYSTEM
    share: float = 1.0


class DecoderBatch(struct.PyTreeNode):
    """Clips and the dialogues about them.

    Attributes:
        prefix: the prompt before the media.
        media: embeddings of the chosen tokens, window after window, in each video then audio, and
            padding behind.
        count: media tokens that are real.
        positions: of prefix and media.
        after: position of the text that follows.
        labels: of the media tokens, for the auxiliary heads. Colour and shape of a video token are
            its own, those of an audio token of what is seen alone in the same second; ``before``
            is the sound before the one that is heard, ``elapsed`` the time since the beginning;
            ``number`` counts the sounds so far, ``time`` how often this one was heard, and
            ``different`` how many different ones.
        text: dialogues after the media, padded.
        answer: 0 where the next token is not learned, else the number of the round, from 1.
        kind: of the first question of each dialogue, its place among ``KINDS``.
        tells: which media tokens tell the first answer of each dialogue, for some kinds of it.
    """

    prefix: Int[Array, "P"]
    media: Float[Array, "B M D"]
    count: Int[Array, "B"]
    positions: Int[Array, "B 3 T"]
    after: Int[Array, "B"]
    labels: dict[str, Int[Array, "B M"]]
    text: Int[Array, "B Q S"]
    answer: Int[Array, "B Q S"]
    kind: Int[Array, "B Q"]
    tells: Bool[Array, "B Q M"]


class Dialogues:
    """Draws batches of clips and dialogues from banks, one for each look."""

    def __init__(
        self, banks: Sequence[tuple[Difficulty, Bank]], tokenizer: Any, config: ModelConfig
    ):
        self._banks, self._tokenizer, self._config = banks, tokenizer, config
        self._suffixes: dict[str, np.ndarray] = {}
        self._answers: dict[str, int] = {}

    def draw(self, random: np.random.Generator, lesson: Lesson) -> DecoderBatch:
        prompt = prompts.build(
            self._tokenizer,
            self._config,
            "-",
            audio=True,
            video=True,
            system=lesson.system,
        )
        start = int(prompt.prefix_positions[-1]) + 1
        clips = [self._draw_clip(random, lesson, start) for _ in range(lesson.clips)]
        questions = [
            [
                draw_questions(objects, random, lesson.rounds, lesson.kinds, windows * SPEC.seconds)
                for _ in range(lesson.rows)
            ]
            for _, _, _, objects, windows in clips
        ]
        text, answer = zip(*(self._write(rows, lesson.rounds) for rows in questions), strict=True)

        def padded(values: np.ndarray, axis: int = 0) -> np.ndarray:
            padding = [(0, 0)] * values.ndim
            padding[axis] = (0, lesson.slots - values.shape[axis])
            return np.pad(values, padding)

        before = np.tile(prompt.prefix_positions, (3, 1))
        return DecoderBatch(
            prefix=prompt.prefix,
            media=np.stack([padded(media) for media, *_ in clips]).astype(np.float32),
            count=np.array([len(media) for media, *_ in clips], np.int32),
            positions=np.stack(
                [np.concatenate([before, padded(at, 1)], axis=1) for _, at, *_ in clips]
            ).astype(np.int32),
            after=np.array(
                [start + windows * self._config.window_positions for *_, windows in clips], np.int32
            ),
            labels={
                name: np.stack([padded(labels[name]) for _, _, labels, *_ in clips])
                for name in CLASSES
            },
            text=np.stack(text),
            answer=np.stack(answer),
            kind=np.array([[KINDS.index(row[0].kind) for row in rows] for rows in questions]),
            tells=np.stack(
                [
                    [padded(_tells(row[0], labels)) for row in rows]
                    for (_, _, labels, *_), rows in zip(clips, questions, strict=True)
                ]
            ),
        )

    def _draw_clip(self, random: np.random.Generator, lesson: Lesson, start: int):
        look, bank = self._banks[int(random.integers(len(self._banks)))]
        if lesson.whole:
            clip = int(random.integers(bank.consistent))
            objects, windows, places = bank.objects[clip], bank.windows[clip], bank.whole(clip)
        else:
            fewest, most = lesson.windows
            windows = round(fewest * (most / fewest) ** random.random())  # as likely twice as long
            again = random.random() < lesson.again
            plot = dataclasses.replace(look, max_occurrences=LONG.max_occurrences if again else 1)
            objects: tuple[ClipObject, ...] = ()
            while not any(obj.sound for obj in objects):
                objects = bank.without_unknown(draw_objects(random, plot, windows))
            places = bank.find(objects, windows, random)
        grids, sounds = places
        labels = {
            name: _lay_out(*pair)
            for name, pair in self._label(bank, objects, grids, sounds).items()
        }
        busy = (labels["colour"] > 0) | (labels["sound"] > 0)
        chosen = _choose(random, busy, lesson.slots, lesson.all_sound)
        media = _lay_out(bank.video[grids], bank.audio[sounds])[chosen]
        at = clip_positions(MOST_WINDOWS, start)[:, chosen]
        return media, at, {name: x[chosen] for name, x in labels.items()}, objects, windows

    def _label(self, bank: Bank, objects, grids, sounds):
        """Labels of every video and of every audio token, by name."""
        alone = {t.second: t for t in objects if sum(o.second == t.second for o in objects) == 1}
        none = ClipObject(-1, None, None)
        nearby = [alone.get(second, none) for second in range(len(grids))]
        colour, shape, sound = (bank.labels[name] for name in ("colour", "shape", "sound"))
        heard = sound[sounds]

        def of_slots(values: Sequence[int]) -> np.ndarray:
            """For each audio token what belongs to its slot."""
            return np.repeat(values, SPEC.audio_slots // SPEC.seconds).reshape(heard.shape)

        so_far, times, last = defaultdict(list), Counter[str | None](), None
        for second in range(len(grids)):
            so_far["before"].append(SOUND_IDS[last])
            for sound in (t.sound for t in objects if t.second == second and t.sound):
                last = sound
                times[sound] += 1
            so_far["number"].append(min(times.total(), MOST_COUNTED))
            so_far["time"].append(min(times[last], MOST_COUNTED))
            so_far["different"].append(len(times))
        slots = np.arange(len(grids))
        elapsed = 1 + np.searchsorted(ELAPSED, slots, "right")
        beside = {
            name: of_slots([ids[getattr(obj, name)] for obj in nearby])
            for name, ids in (("colour", COLOUR_IDS), ("shape", SHAPE_IDS))
        }
        silence = np.zeros_like(colour[grids])
        return {
            "colour": (colour[grids], beside["colour"]),
            "shape": (shape[grids], beside["shape"]),
            "sound": (silence, heard),
            "elapsed": ((colour[grids] > 0) * elapsed[:, None], (heard > 0) * of_slots(elapsed)),
            "slot": (silence + slots[:, None], of_slots(slots)),
            **{name: (silence, of_slots(x) * (heard > 0)) for name, x in so_far.items()},
        }

    def _write(
        self, dialogues: Sequence[Sequence[Question]], rounds: int
    ) -> tuple[np.ndarray, np.ndarray]:
        text = np.zeros((len(dialogues), TURN * rounds), np.int32)
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

    @functools.cached_property
    def _between(self) -> np.ndarray:
        return np.array(self._tokenizer.encode("<|im_end|>\n<|im_start|>user\n"), np.int32)


def _tells(question: Question, labels) -> Bool[np.ndarray, " M"]:
    """The tokens in which a question's clues are seen or heard.

    Of something silent that is seen, the tokens of the silence tell as much.
    """
    slots = [obj.second for obj in question.evidence]
    if question.family == "video":
        there = np.isin(labels["colour"], [COLOUR_IDS[obj.colour] for obj in question.evidence])
        there &= labels["sound"] == 0
    else:
        there = labels["sound"] > 0
    return there & np.isin(labels["slot"], slots)


def _lay_out(video: np.ndarray, audio: np.ndarray) -> np.ndarray:
    """Tokens of grids and of windows of sound in the order in which they are read."""
    video = video.reshape(len(audio), -1, *video.shape[2:])
    both = np.concatenate([video, audio], axis=1)
    return both.reshape(-1, *both.shape[2:])


def _choose(
    random: np.random.Generator, busy: Bool[np.ndarray, " T"], slots: int, all_sound: bool
) -> Int[np.ndarray, " slots"]:
    """Which tokens are read: all of them, or those that a rule might have kept.

    Tokens in which something is are preferred, more or less. Some rules thin old windows more than
    new ones, some keep more of one window than of another one, some more of the sound.
    """
    count = len(busy)
    if count <= slots:
        return np.arange(count)
    place = np.arange(count) % SPEC.slots
    window = np.arange(count) // SPEC.slots
    score = random.gumbel(size=count) + busy * random.uniform(1, 5)
    sound = place >= SPEC.video_slots
    score += sound * (1e3 if all_sound else random.normal(0, 1))
    rule = random.integers(3)
    if rule == 0:
        score -= np.log1p(window.max() - window)
    elif rule == 1:
        part = 3 * window + np.minimum(place // SPEC.grid_slots, SPEC.grids)
        score += random.normal(0, 1, part.max() + 1)[part]
    return np.sort(np.argpartition(-score, slots)[:slots])


@functools.cache
def clip_positions(windows: int, start: int) -> Int[np.ndarray, "3 slots"]:
    """TMRoPE positions of every token of a clip whose first window begins at ``start``."""
    empty = Window.empty(SPEC)
    layout = empty.replace(grid_size=empty.grid_size * GRID, grid_mask=~empty.grid_mask)
    one = tmrope.window_positions(layout, start, start, GRID**2, SPEC.audio_slots)
    two = tmrope.window_positions(layout, start + SPEC.positions, start, GRID**2, SPEC.audio_slots)
    each = np.asarray(one)[:, None] + np.arange(windows)[:, None] * np.asarray(two - one)[:, None]
    return each.reshape(3, -1)
