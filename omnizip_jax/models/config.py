"""Sizes that all model families have, and the reader of a released ``config.json``.

The reader is own code: a library words a missing entry, a wrong type and a value out of range in
three ways, so stating path, expected range and received value takes as many lines.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from omnizip_jax.window_spec import WindowSpec

FRAMES_PER_SECOND = 2  # of the video
MAX_LAYERS = 2**10  # names and shapes are listed layer by layer
MAX_COUNT = 2**24  # of any other number

Sizes = TypeVar("Sizes")


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises ``ValueError`` if it cannot be read or parsed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"not a readable JSON file ({error})") from error


@dataclasses.dataclass(frozen=True)
class Entry:
    """Name of an entry in the file, and its valid values."""

    name: str
    expected: str
    valid: Callable[[Any], bool]


def integer(name: str, maximum: int = MAX_COUNT, minimum: int = 1) -> Entry:
    """An integer from ``minimum`` to ``maximum``."""
    expected = f"an integer from {minimum} to {maximum}"
    return Entry(name, expected, lambda value: _is_integer(value, minimum, maximum))


def integers(name: str, maximum: int) -> Entry:
    """A list of integers from 0 to ``maximum``."""

    def valid(values: Any) -> bool:
        return isinstance(values, list) and all(_is_integer(value, 0, maximum) for value in values)

    return Entry(name, f"a list of integers from 0 to {maximum}", valid)


def flag(name: str) -> Entry:
    """True or false."""
    return Entry(name, "true or false", lambda value: isinstance(value, bool))


def positive(name: str) -> Entry:
    """A finite number above zero."""

    def valid(value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and 0 < value < math.inf

    return Entry(name, "a positive number", valid)


class ConfigSection:
    """One mapping of a parsed configuration, at a path such as ``thinker_config.text_config``.

    Raises:
        ValueError: ``values`` is not a mapping. The methods: an entry is missing or invalid; states
            path, expected and received value.
    """

    def __init__(self, values: Any, path: str = ""):
        if not isinstance(values, dict):
            raise ValueError(f"{path or 'the file'}: expected a mapping, got {_short(values)}")
        self.values, self.path = values, path

    def section(self, name: str) -> ConfigSection:
        """A nested mapping."""
        values = self.get(Entry(name, "a mapping", lambda value: isinstance(value, dict)))
        return ConfigSection(values, self._path_of(name))

    def get(self, entry: Entry) -> Any:
        """The value of an entry; a list as a tuple."""
        self.check(entry.name in self.values, entry.name, entry.expected)
        value = self.values[entry.name]
        self.check(entry.valid(value), entry.name, entry.expected)
        return tuple(value) if isinstance(value, list) else value

    def read(self, sizes: type[Sizes], **values: Any) -> Sizes:
        """Build a dataclass: ``values``, and an entry for each field annotated with one."""
        for name, hint in typing.get_type_hints(sizes, include_extras=True).items():
            for entry in getattr(hint, "__metadata__", ()):
                values[name] = self.get(entry)
        return sizes(**values)

    def check_fixed(self, name: str, *implemented: Any) -> None:
        """Check that an entry is missing or has one of the implemented values."""
        if name in self.values:
            expected = " or ".join(map(_short, implemented))
            valid = any(self.values[name] == value for value in implemented)
            self.check(valid, name, f"{expected} (no other value is implemented)")

    def check(self, valid: bool, name: str, expected: str) -> None:
        """Raise ``ValueError`` about an entry unless it is valid."""
        if not valid:
            got = _short(self.values[name]) if name in self.values else "nothing"
            raise ValueError(f"{self._path_of(name)}: expected {expected}, got {got}")

    def _path_of(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def _is_integer(value: Any, minimum: int, maximum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def _short(value: Any) -> str:
    return reprlib.repr(value)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the decoder (``thinker_config.text_config``)."""

    vocabulary: Annotated[int, integer("vocab_size")]
    layers: Annotated[int, integer("num_hidden_layers", MAX_LAYERS)]
    hidden: Annotated[int, integer("hidden_size")]
    heads: Annotated[int, integer("num_attention_heads")]
    kv_heads: Annotated[int, integer("num_key_value_heads")]
    ffn: Annotated[int, integer("intermediate_size")]
    rope_theta: float
    mrope_section: tuple[int, int, int]  # rotary frequencies of time, height and width
    rms_eps: Annotated[float, positive("rms_norm_eps")]
    max_positions: Annotated[int, integer("max_position_embeddings")]
    tied: bool  # lm_head shares the embedding table
    head_dim: int = 0  # 0: hidden / heads
    attention_bias: bool = True  # of the queries, keys and values
    qk_norm: bool = False  # RMSNorm of each head of the queries and keys
    mrope_interleaved: bool = False  # the axes of position alternate between frequencies
    experts: int = 0  # 0: one feed-forward network of width `ffn`
    experts_per_token: int = 0
    expert_ffn: int = 0
    deepstack_layers: int = 0  # first layers, after which features of video tokens are added

    def __post_init__(self):
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden // self.heads)


@dataclasses.dataclass(frozen=True)
class BaseAudioConfig:
    """Sizes of an audio encoder (``thinker_config.audio_config``)."""

    mel_bins: Annotated[int, integer("num_mel_bins")]
    layers: Annotated[int, integer("encoder_layers", MAX_LAYERS)]
    hidden: Annotated[int, integer("d_model")]
    heads: Annotated[int, integer("encoder_attention_heads")]
    ffn: Annotated[int, integer("encoder_ffn_dim")]
    output: Annotated[int, integer("output_dim")]
    # Half of an attention block in Qwen2.5, of the input of the convolutions in Qwen3; mel frames.
    n_window: Annotated[int, integer("n_window")]

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclasses.dataclass(frozen=True)
class BaseVisionConfig:
    """Sizes of a vision encoder (``thinker_config.vision_config``).

    ``temporal_patch`` is in frames per grid, ``patch`` the side of a patch in pixels, and ``merge``
    the side of a merged token in patches.
    """

    layers: Annotated[int, integer("depth", MAX_LAYERS)]
    hidden: Annotated[int, integer("hidden_size")]
    heads: Annotated[int, integer("num_heads")]
    ffn: Annotated[int, integer("intermediate_size")]
    channels: Annotated[int, integer("in_channels")]
    patch: Annotated[int, integer("patch_size", 2**8)]
    temporal_patch: Annotated[int, integer("temporal_patch_size", 2**5)]
    merge: Annotated[int, integer("spatial_merge_size", 2**5)]
    output: Annotated[int, integer("out_hidden_size")]

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def patch_values(self) -> int:
        """Values per patch, channels x frames x rows x columns (1176 in Qwen2.5, 1536 in Qwen3)."""
        return self.channels * self.temporal_patch * self.patch**2


@dataclasses.dataclass(frozen=True)
class BaseModelConfig:
    """Sizes and token ids of a model.

    A family adds the sizes of its encoders, ``MIN_MEL_FRAMES``, ``audio_slots`` and ``from_dict``.
    """

    MIN_MEL_FRAMES: ClassVar[int]  # that make an audio token

    audio: BaseAudioConfig
    vision: BaseVisionConfig
    text: TextConfig
    audio_token: int
    video_token: int
    audio_start_token: int
    audio_end_token: int
    vision_start_token: int
    vision_end_token: int
    positions_per_second: int
    seconds_per_chunk: int
    grid_slots: int = 144  # tokens per grid in the training of the model

    @property
    def audio_slots(self) -> int:
        """Audio tokens in a window."""
        raise NotImplementedError

    @property
    def spec(self) -> WindowSpec:
        """Shape of the windows that the encoders accept."""
        vision = self.vision
        return WindowSpec(
            seconds=self.seconds_per_chunk,
            audio_slots=self.audio_slots,
            grids=FRAMES_PER_SECOND * self.seconds_per_chunk // vision.temporal_patch,
            grid_slots=self.grid_slots,
            patch=vision.patch,
            merge=vision.merge,
            temporal_patch=vision.temporal_patch,
            mel_bins=self.audio.mel_bins,
            min_mel_frames=self.MIN_MEL_FRAMES,
            positions_per_second=self.positions_per_second,
        )

    @property
    def window_positions(self) -> int:
        """Positions between the starts of consecutive windows (50 or 26 as released)."""
        return self.spec.positions

    def untied(self) -> Self:
        """The same sizes with separate weights for embedding and head."""
        return dataclasses.replace(self, text=dataclasses.replace(self.text, tied=False))

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Build from the parsed ``config.json`` of the whole model or of the thinker alone.

        The entry ``"omnizip": {"grid_slots": 36}``, absent in released files, is optional.

        Raises:
            ValueError: an entry is missing or invalid; names entry, expected and received.
        """
        raise NotImplementedError


def thinker_section(values: Any, model_type: str) -> tuple[ConfigSection, ConfigSection]:
    """The parsed ``config.json`` of the whole model or of the thinker alone, and its thinker."""
    whole = ConfigSection(values)
    whole.check_fixed("model_type", model_type, f"{model_type}_thinker")
    return whole, whole.section("thinker_config") if "thinker_config" in values else whole


def read_text(thinker: ConfigSection, **sizes: Any) -> TextConfig:
    """Read the sizes of the decoder, and check that they fit each other.

    Args:
        sizes: those in which the families differ. Without ``head_dim``, heads divide ``hidden``.
    """
    section = thinker.section("text_config")
    rope = rope_section(section)
    theta = section if section.values.get("rope_theta") is not None else rope
    tied = flag("tie_word_embeddings")
    text = section.read(
        TextConfig,
        rope_theta=theta.get(positive("rope_theta")),
        mrope_section=rope.get(integers("mrope_section", MAX_COUNT)),
        tied=thinker.get(tied) if tied.name in thinker.values else False,
        **sizes,
    )
    if "head_dim" not in sizes:
        check_heads(section, "num_attention_heads", "hidden_size", text.hidden, text.heads, unit=2)
    section.check(
        text.heads % text.kv_heads == 0,
        "num_key_value_heads",
        f"a divisor of num_attention_heads = {text.heads}",
    )
    rope.check(
        len(text.mrope_section) == 3 and 2 * sum(text.mrope_section) == text.head_dim,
        "mrope_section",
        f"three numbers with the sum {text.head_dim // 2}, half the size of a head",
    )
    section.check_fixed("head_dim", text.head_dim, None)
    section.check_fixed("hidden_act", "silu")
    section.check_fixed("use_sliding_window", False, None)
    section.check_fixed("layer_types", ["full_attention"] * text.layers, None)
    for name in ("rope_type", "type"):
        rope.check_fixed(name, "default", "mrope")
    return text


def rope_section(section: ConfigSection) -> ConfigSection:
    """The rotary settings: transformers 5 writes ``rope_parameters``, older ones `rope_scaling`."""
    new = section.values.get("rope_parameters")
    return section.section("rope_parameters" if new else "rope_scaling")


def check_audio(section: ConfigSection, audio: BaseAudioConfig, output: int) -> None:
    """Check that the sizes of an audio encoder fit each other and the decoder's width."""
    check_heads(section, "encoder_attention_heads", "d_model", audio.hidden, audio.heads)
    section.check(audio.hidden % 2 == 0 and audio.hidden > 2, "d_model", "an even number above 2")
    section.check(audio.output == output, "output_dim", f"{output}, the decoder's hidden_size")
    section.check_fixed("activation_function", "gelu")


def check_vision(section: ConfigSection, vision: BaseVisionConfig, output: int) -> None:
    """Check that the sizes of a vision encoder fit each other and the decoder's width."""
    check_heads(section, "num_heads", "hidden_size", vision.hidden, vision.heads, unit=4)
    section.check(vision.channels == 3, "in_channels", "3: red, green, blue")
    expected = f"{output}, the decoder's hidden_size"
    section.check(vision.output == output, "out_hidden_size", expected)


def check_heads(
    section: ConfigSection, name: str, whole: str, hidden: int, heads: int, unit: int = 1
) -> None:
    """Check that heads divide the features; rotary angles need multiples of ``unit``."""
    groups = f" into multiples of {unit}" if unit > 1 else ""
    section.check(
        hidden % (heads * unit) == 0, name, f"a number that divides {whole} = {hidden}{groups}"
    )


def read_prompt(
    whole: ConfigSection,
    thinker: ConfigSection,
    vocabulary: int,
    tokens: Mapping[str, str],
    rate: int,
) -> dict[str, int]:
    """Read positions per second, ids of placeholders and markers, and slots of a grid.

    The ids are inside the vocabulary and distinct.

    Args:
        tokens: name of the entry of each id, by field.
        rate: audio tokens per second, which are the positions per second.
    """
    name = "position_id_per_seconds"
    expected = f"{rate}, the audio tokens per second"
    thinker.check(thinker.get(integer(name)) == rate, name, expected)
    ids: dict[str, int] = {}
    for field, name in tokens.items():
        token = thinker.get(integer(name, vocabulary - 1, minimum=0))
        thinker.check(token not in ids.values(), name, "an id that no other marker has")
        ids[field] = token
    slots = {}  # an entry of this library
    if "omnizip" in whole.values:
        slots["grid_slots"] = whole.section("omnizip").get(integer("grid_slots"))
    return {"positions_per_second": rate, **ids, **slots}
