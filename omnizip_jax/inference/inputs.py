"""User input: media and text parts of a turn, loaded and tokenized."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnizip_jax.inference.chat_template import Modalities, Text, segments
from omnizip_jax.media import Clip, check_clip, load_clip
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.models.registry import Config, family
from omnizip_jax.window_spec import WindowSpec, check_flags

SHOWN = 8  # windows of a clip whose frames an answer keeps


@dataclasses.dataclass(frozen=True)
class MediaOptions:
    """Options of loading a turn; see the arguments of ``generate``."""

    system: str | None = None
    use_audio: bool = True
    use_video: bool = True
    max_frames: int | None = None
    spec: WindowSpec | None = None
    progress: bool = False
    audio_stream: int | None = None
    video_stream: int | None = None


@dataclasses.dataclass(frozen=True)
class UserTurn:
    """The clips of a turn, and the texts before, between and after them.

    Attributes:
        clips: in order; each follows the text of the same index.
        texts: without the start tokens of clips; the last one is the question.
    """

    clips: tuple[Clip, ...]
    texts: tuple[Text, ...]
    system: str | None

    @classmethod
    def of(cls, params: Params, parts: Sequence[str | Clip], system: str | None = None) -> UserTurn:
        """Tokenize texts and loaded clips, the question last; without a clip, split off the prefix.

        Raises:
            ValueError: a part that is not a text, or no question.
        """
        tokenizer, config = params.tokenizer, params.config
        shapes = [part if isinstance(part, str) else modalities_of(part) for part in parts]
        texts = segments(tokenizer, config, shapes, system)
        if len(texts) == 1:
            opening = segments(tokenizer, config, [Modalities(True, True), "?"], system)[0]
            pieces = np.split(texts[0].tokens, [len(opening.tokens)])
            texts = [Text(piece, np.arange(len(piece), dtype=np.int32)) for piece in pieces]
        return cls(tuple(p for p in parts if isinstance(p, Clip)), tuple(texts), system)

    @property
    def question(self) -> Text:
        return self.texts[-1]

    @property
    def shown(self) -> Clip | None:
        """The last clip, with the frames of a few windows."""
        return self.clips[-1].sample(SHOWN) if self.clips else None

    def text_before(self, config: Config) -> int:
        """Number of text tokens before the question, start tokens of clips included."""
        start_markers, shapes = family(config).start_markers, map(modalities_of, self.clips)
        markers = sum(len(start_markers(config, each.audio, each.video)) for each in shapes)
        return markers + sum(len(text.tokens) for text in self.texts[:-1])


def modalities_of(clip: Clip) -> Modalities:
    """The modalities that a clip has."""
    return Modalities(clip.has_audio, clip.has_video)


def load_turn(params: Params, parts: Sequence[Any], media_options: MediaOptions) -> UserTurn:
    """Load the parts of ``converse``.

    Raises:
        ValueError: an unreadable clip, a part that is neither text nor clip, an invalid option.
    """
    config = params.config
    spec = config.spec if media_options.spec is None else media_options.spec
    flags = {"use_audio": media_options.use_audio, "use_video": media_options.use_video}
    check_flags(**flags)
    family(config).check_spec(spec, config)
    if not isinstance(parts, list | tuple):
        raise ValueError(
            f"parts must be a list of texts and clips with the question last, got "
            f"{type(parts).__name__}"
        )

    def loaded(part: Any) -> str | Clip:
        if isinstance(part, str):
            return part
        source = _source(part)
        if isinstance(source, Clip):
            check_clip(source)
            family(config).check_spec(source.spec, config)
            if media_options.spec not in (None, source.spec):
                raise ValueError(
                    f"this clip has the shape {source.spec}, spec is {media_options.spec}: load it "
                    "with that spec, or leave spec out"
                )
            if (media_options.audio_stream, media_options.video_stream) != (None, None):
                raise ValueError(
                    "audio_stream and video_stream are of a file: pass them to load_clip"
                )
            return source.select(media_options.max_frames, **flags)
        return load_clip(
            source,
            spec,
            max_frames=media_options.max_frames,
            max_windows=config.text.max_positions // config.window_positions,
            **flags,
            audio_stream=media_options.audio_stream,
            video_stream=media_options.video_stream,
            progress=media_options.progress,
        )

    return UserTurn.of(params, [loaded(part) for part in parts], media_options.system)


def _source(part: Any) -> Any:
    """The source of a part that is not a text."""
    if isinstance(part, Mapping):
        if set(part) != {"video"}:
            raise ValueError(
                f'a clip among the parts is {{"video": source}}, got a mapping of {list(part)}'
            )
        return part["video"]
    if not isinstance(part, Path | tuple | Clip):
        raise ValueError(
            f'a part is a text, a clip as {{"video": source}}, a Path, a tuple of arrays or a '
            f"Clip; got {type(part).__name__}"
        )
    return part


def check_positions(turn: UserTurn, max_new_tokens: int, config: Config) -> None:
    """Raise ``ValueError`` if the answer would end beyond the positions of the model."""
    media = sum(len(clip.windows.mel_length) for clip in turn.clips) * config.window_positions
    end = media + sum(len(text.tokens) + 2 for text in turn.texts) + max_new_tokens
    if end > config.text.max_positions:
        raise ValueError(
            f"the clip ({media} positions, {config.positions_per_second} a second), the question "
            f"and the answer need {end} positions; the model has {config.text.max_positions}: "
            "shorten the clip, or stream it"
        )
