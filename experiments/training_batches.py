"""Training batches of the decoder: encoded clips with labels, questions and answers about them."""

from __future__ import annotations

# pyright: reportArgumentType=false, reportReturnType=false
# Batches are made of numpy arrays; their fields are declared for the device.
import dataclasses
import functools
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from benchmarks.prompts import build
from experiments.accuracy_questions import KINDS
from experiments.clip_inputs import GRID
from experiments.streaming_recall_clips import STREAM_WINDOWS
from experiments.training_clips import (
    COLOUR_IDS,
    SHAPE_IDS,
    SOUND_IDS,
    TARGETS,
    EncodedClips,
    Objects,
)
from omnizip_jax.models import prompt as tmrope
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.testbed.clip_questions import Question, draw_questions
from omnizip_jax.testbed.synthetic_clips import (
    DIFFICULTIES,
    SPEC,
    ClipObject,
    Difficulty,
    draw_objects,
)
from omnizip_jax.types import Window

ELAPSED = (5, 10, 15, 20, 30, 40, 60, 90, 120, 180)  # class boundaries in seconds
MAX_COUNT = 7  # higher counts share this class
# Classes of the auxiliary heads in the decoder.
CLASSES = TARGETS | {
    "before": len(SOUND_IDS),
    "elapsed": len(ELAPSED) + 2,
    "number": MAX_COUNT + 1,
    "time": MAX_COUNT + 1,
    "different": len(SOUND_IDS),
}
MAX_OCCURRENCES = DIFFICULTIES["long"].max_occurrences
MAX_WINDOWS = STREAM_WINDOWS  # of a combined clip
MAX_TURN = 24  # tokens of a question and its answer


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """Composition of a batch of the decoder.

    Attributes:
        tokens: media tokens of a clip, at most. Longer clips are sampled, with a preference for
            tokens that contain an object; shorter ones are padded.
        clips: in a batch.
        dialogues: about a clip, independent of each other.
        rounds: questions of a dialogue.
        windows: smallest and largest length of a clip.
        recurring: share of the clips in which objects appear several times.
        kinds: of questions; None for all.
        all_audio: whether video tokens are dropped before audio tokens.
        unchanged: whether clips are used as rendered instead of being combined.
        system: system prompt; None: the model's default.
        weight: share of the steps of a stage, relative to its other specs.
    """

    tokens: int
    clips: int = 8
    dialogues: int = 4
    rounds: int = 1
    windows: tuple[int, int] = (4, 4)
    recurring: float = 0.0
    kinds: tuple[str, ...] | None = None
    all_audio: bool = False
    unchanged: bool = False
    system: str | None = None
    weight: float = 1.0


class DecoderBatch(struct.PyTreeNode):
    """Clips and dialogues about them.

    Attributes:
        prefix: tokens of the prompt before the media.
        media: embeddings of the sampled tokens in prompt order, padded at the end.
        count: number of media tokens without padding.
        positions: of prefix and media.
        next_position: of the text after the media.
        labels: of the media tokens, for the auxiliary heads. Colour and shape of an audio token are
            those of the only object of its second; ``before`` is the previous sound, ``elapsed``
            the class of its time, ``number`` the number of sounds so far, ``time`` how often this
            sound occurred, ``different`` the number of different sounds.
        text: tokens of the dialogues after the media, padded.
        answer: 0 where the next token is not a target, else the number of the round, from 1.
        kind: of the first question of each dialogue, an index in ``KINDS``.
        evidence: media tokens in which the first answer of each dialogue is found, for the kinds of
            questions that have evidence.
    """

    prefix: Int[Array, "P"]
    media: Float[Array, "B M D"]
    count: Int[Array, "B"]
    positions: Int[Array, "B 3 T"]
    next_position: Int[Array, "B"]
    labels: dict[str, Int[Array, "B M"]]
    text: Int[Array, "B Q S"]
    answer: Int[Array, "B Q S"]
    kind: Int[Array, "B Q"]
    evidence: Bool[Array, "B Q M"]


@dataclasses.dataclass(frozen=True)
class _Clip:
    """A sampled clip: embeddings, positions and labels of its tokens, its objects and length."""

    media: np.ndarray
    positions: np.ndarray
    labels: dict[str, np.ndarray]
    objects: Objects
    windows: int


class BatchSampler:
    """Samples batches of clips and dialogues from encoded clips of several difficulties."""

    def __init__(
        self,
        sources: Sequence[tuple[Difficulty, EncodedClips]],
        tokenizer: Any,
        config: ModelConfig,
    ):
        self._sources, self._tokenizer, self._config = sources, tokenizer, config
        self._suffixes: dict[str, np.ndarray] = {}
        self._between = np.array(tokenizer.encode("<|im_end|>\n<|im_start|>user\n"), np.int32)

    def draw(self, random: np.random.Generator, spec: BatchSpec) -> DecoderBatch:
        prompt = self._prompt("-", spec.system)
        start = int(prompt.prefix_positions[-1]) + 1
        clips = [self._draw_clip(random, spec, start) for _ in range(spec.clips)]
        questions = [
            [
                draw_questions(
                    clip.objects, random, spec.rounds, spec.kinds, clip.windows * SPEC.seconds
                )
                for _ in range(spec.dialogues)
            ]
            for clip in clips
        ]
        text, answer = zip(*(self._write(rows, spec.rounds) for rows in questions), strict=True)

        def padded(values: np.ndarray, axis: int = 0) -> np.ndarray:
            padding = [(0, 0)] * values.ndim
            padding[axis] = (0, spec.tokens - values.shape[axis])
            return np.pad(values, padding)

        prefix = np.tile(prompt.prefix_positions, (3, 1))
        lengths = np.array([clip.windows for clip in clips])
        return DecoderBatch(
            prefix=prompt.prefix,
            media=np.stack([padded(clip.media) for clip in clips]).astype(np.float32),
            count=np.array([len(clip.media) for clip in clips], np.int32),
            positions=np.stack(
                [np.concatenate([prefix, padded(clip.positions, 1)], axis=1) for clip in clips]
            ).astype(np.int32),
            next_position=(start + lengths * self._config.window_positions).astype(np.int32),
            labels={name: np.stack([padded(c.labels[name]) for c in clips]) for name in CLASSES},
            text=np.stack(text),
            answer=np.stack(answer),
            kind=np.array([[KINDS.index(row[0].kind) for row in rows] for rows in questions]),
            evidence=np.stack(
                [
                    [padded(_evidence(row[0], clip.labels)) for row in rows]
                    for clip, rows in zip(clips, questions, strict=True)
                ]
            ),
        )

    def _draw_clip(self, random: np.random.Generator, spec: BatchSpec, start: int) -> _Clip:
        difficulty, source = self._sources[int(random.integers(len(self._sources)))]
        if spec.unchanged:
            clip = int(random.integers(source.consistent))
            objects, windows = source.objects[clip], source.windows[clip]
            grids, audio = source.unchanged(clip)
        else:
            fewest, most = spec.windows
            windows = round(fewest * (most / fewest) ** random.random())  # log-uniform
            occurrences = MAX_OCCURRENCES if random.random() < spec.recurring else 1
            difficulty = dataclasses.replace(difficulty, max_occurrences=occurrences)
            objects: Objects = ()
            while not any(obj.sound for obj in objects):
                objects = source.available(draw_objects(random, difficulty, windows))
            grids, audio = source.combine(objects, windows, random)
        pairs = _labels(source, objects, grids, audio)
        labels = {name: _token_order(*pair) for name, pair in pairs.items()}
        busy = (labels["colour"] > 0) | (labels["sound"] > 0)
        chosen = _sample_tokens(random, busy, spec.tokens, spec.all_audio)
        return _Clip(
            media=_token_order(source.video[grids], source.audio[audio])[chosen],
            positions=clip_positions(MAX_WINDOWS, start)[:, chosen],
            labels={name: values[chosen] for name, values in labels.items()},
            objects=objects,
            windows=windows,
        )

    def _write(
        self, dialogues: Sequence[Sequence[Question]], rounds: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of the dialogues, and for each the round of the answer that follows it, or 0."""
        text = np.zeros((len(dialogues), MAX_TURN * rounds), np.int32)
        answer = np.zeros_like(text)
        for row, questions in enumerate(dialogues):
            at = 0
            for number, question in enumerate(questions, start=1):
                turn = self._suffix(question.text)
                if number > 1:  # only the first turn follows the media
                    turn = np.concatenate([self._between, turn[2:]])
                text[row, at : at + len(turn)] = turn
                at += len(turn)
                answer[row, at - 1 : at + 1] = number
                (token,) = self._tokenizer.encode(question.answer)
                text[row, at : at + 2] = token, self._tokenizer.eos_token_id
                at += 1 if number < len(questions) else 2
        return text, answer

    def _suffix(self, question: str) -> np.ndarray:
        if question not in self._suffixes:
            self._suffixes[question] = self._prompt(question, None).suffix
        return self._suffixes[question]

    def _prompt(self, question: str, system: str | None) -> Any:
        return build(self._tokenizer, self._config, question, audio=True, video=True, system=system)


def _labels(source: EncodedClips, objects: Objects, grids: np.ndarray, audio: np.ndarray):
    """Labels of every video token and of every audio token, by name."""
    single = {o.second: o for o in objects if sum(p.second == o.second for p in objects) == 1}
    none = ClipObject(-1, None, None)
    visible = [single.get(second, none) for second in range(len(grids))]
    colour, shape, sound = (source.labels[name] for name in ("colour", "shape", "sound"))
    audible = sound[audio]

    def audio_tokens(values: Sequence[int]) -> np.ndarray:
        """Values of seconds, repeated for the audio tokens of each."""
        return np.repeat(values, SPEC.audio_slots // SPEC.seconds).reshape(audible.shape)

    so_far, times, last = defaultdict(list), Counter[str | None](), None
    for second in range(len(grids)):
        so_far["before"].append(SOUND_IDS[last])
        for name in (obj.sound for obj in objects if obj.second == second and obj.sound):
            last = name
            times[name] += 1
        so_far["number"].append(min(times.total(), MAX_COUNT))
        so_far["time"].append(min(times[last], MAX_COUNT))
        so_far["different"].append(len(times))
    seconds = np.arange(len(grids))
    elapsed = 1 + np.searchsorted(ELAPSED, seconds, "right")
    same_second = {
        name: audio_tokens([ids[getattr(obj, name)] for obj in visible])
        for name, ids in (("colour", COLOUR_IDS), ("shape", SHAPE_IDS))
    }
    zeros = np.zeros_like(colour[grids])
    return {
        "colour": (colour[grids], same_second["colour"]),
        "shape": (shape[grids], same_second["shape"]),
        "sound": (zeros, audible),
        "elapsed": ((colour[grids] > 0) * elapsed[:, None], (audible > 0) * audio_tokens(elapsed)),
        "second": (zeros + seconds[:, None], audio_tokens(seconds)),
        **{name: (zeros, audio_tokens(x) * (audible > 0)) for name, x in so_far.items()},
    }


def _evidence(question: Question, labels) -> Bool[np.ndarray, " M"]:
    """Tokens that contain the evidence of a question.

    For the video of a silent object these are also the audio tokens of its second.
    """
    seconds = [obj.second for obj in question.evidence]
    if question.family == "video":
        tokens = np.isin(labels["colour"], [COLOUR_IDS[obj.colour] for obj in question.evidence])
        tokens &= labels["sound"] == 0
    else:
        tokens = labels["sound"] > 0
    return tokens & np.isin(labels["second"], seconds)


def _token_order(video: np.ndarray, audio: np.ndarray) -> np.ndarray:
    """Tokens of grids and audio windows in the order of the prompt."""
    video = video.reshape(len(audio), -1, *video.shape[2:])
    both = np.concatenate([video, audio], axis=1)
    return both.reshape(-1, *both.shape[2:])


def _sample_tokens(
    random: np.random.Generator, busy: Bool[np.ndarray, " T"], tokens: int, all_audio: bool
) -> Int[np.ndarray, " tokens"]:
    """Indices of sampled tokens, as compression methods might select them.

    Tokens that contain an object are preferred by a random degree. A third of the samples thins
    older windows more, a third has a rate for every window and modality.
    """
    count = len(busy)
    if count <= tokens:
        return np.arange(count)
    place = np.arange(count) % SPEC.slots
    window = np.arange(count) // SPEC.slots
    score = random.gumbel(size=count) + busy * random.uniform(1, 5)
    audio = place >= SPEC.video_slots
    score += audio * (1e3 if all_audio else random.normal(0, 1))
    rule = random.integers(3)
    if rule == 0:
        score -= np.log1p(window.max() - window)
    elif rule == 1:
        part = 3 * window + np.minimum(place // SPEC.grid_slots, SPEC.grids)
        score += random.normal(0, 1, part.max() + 1)[part]
    return np.sort(np.argpartition(-score, tokens)[:tokens])


@functools.cache
def clip_positions(windows: int, start: int) -> Int[np.ndarray, "3 tokens"]:
    """TMRoPE positions of every token of a clip whose first window begins at ``start``."""
    empty = Window.empty(SPEC)
    layout = empty.replace(grid_size=empty.grid_size * GRID, grid_mask=~empty.grid_mask)
    one = tmrope.window_positions(layout, start, start, GRID**2, SPEC.audio_slots)
    two = tmrope.window_positions(layout, start + SPEC.positions, start, GRID**2, SPEC.audio_slots)
    each = np.asarray(one)[:, None] + np.arange(windows)[:, None] * np.asarray(two - one)[:, None]
    return each.reshape(3, -1)
