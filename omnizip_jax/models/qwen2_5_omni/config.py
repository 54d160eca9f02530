"""Sizes of Qwen2.5-Omni's thinker, read from the released ``config.json``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from omnizip_jax.models.config import (
    MAX_COUNT,
    MAX_LAYERS,
    ConfigSection,
    Entry,
    TextConfig,
    integer,
    integers,
    positive,
    read_json,
)
from omnizip_jax.window_spec import WindowSpec

AUDIO_TOKENS_PER_SECOND = 25  # 100 mel frames, halved by a convolution and by pooling
FRAMES_PER_SECOND = 2
TOKENS = {  # ids of placeholders and markers, and their entries
    "audio_token": "audio_token_index",
    "video_token": "video_token_index",
    "audio_start_token": "audio_start_token_id",
    "audio_end_token": "audio_end_token_id",
    "vision_start_token": "vision_start_token_id",
    "vision_end_token": "vision_end_token_id",
}


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """Sizes of the audio encoder (``thinker_config.audio_config``)."""

    mel_bins: Annotated[int, integer("num_mel_bins")]
    layers: Annotated[int, integer("encoder_layers", MAX_LAYERS)]
    hidden: Annotated[int, integer("d_model")]
    heads: Annotated[int, integer("encoder_attention_heads")]
    ffn: Annotated[int, integer("encoder_ffn_dim")]
    # Half of an attention block, in mel frames; a block is one 2 s window.
    n_window: Annotated[int, integer("n_window")]
    output: Annotated[int, integer("output_dim")]

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision encoder (``thinker_config.vision_config``).

    ``temporal_patch`` is in frames per grid; ``patch`` and ``window`` are sides in pixels, and
    ``merge`` is the side of a merged token in patches.
    """

    layers: Annotated[int, integer("depth", MAX_LAYERS)]
    hidden: Annotated[int, integer("hidden_size")]
    heads: Annotated[int, integer("num_heads")]
    ffn: Annotated[int, integer("intermediate_size")]
    channels: Annotated[int, integer("in_channels")]
    patch: Annotated[int, integer("patch_size", 2**8)]
    temporal_patch: Annotated[int, integer("temporal_patch_size", 2**5)]
    merge: Annotated[int, integer("spatial_merge_size", 2**5)]
    window: Annotated[int, integer("window_size", 2**10)]
    # As in transformers, layers beyond the last are allowed.
    full_attention_layers: Annotated[tuple[int, ...], integers("fullatt_block_indexes", MAX_LAYERS)]
    output: Annotated[int, integer("out_hidden_size")]

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def patch_values(self) -> int:
        """Values per patch, channels x frames x rows x columns (1176 as released)."""
        return self.channels * self.temporal_patch * self.patch**2


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and token ids of the model."""

    audio: AudioConfig
    vision: VisionConfig
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
    def spec(self) -> WindowSpec:
        """Shape of the windows that the encoders accept."""
        vision = self.vision
        return WindowSpec(
            seconds=self.seconds_per_chunk,
            audio_slots=self.audio.n_window // 2,  # four mel frames to a token
            grids=FRAMES_PER_SECOND * self.seconds_per_chunk // vision.temporal_patch,
            grid_slots=self.grid_slots,
            patch=vision.patch,
            merge=vision.merge,
            temporal_patch=vision.temporal_patch,
            mel_bins=self.audio.mel_bins,
            positions_per_second=self.positions_per_second,
        )

    @property
    def window_positions(self) -> int:
        """Positions between the starts of consecutive windows (50 as released)."""
        return self.spec.positions

    def untied(self) -> ModelConfig:
        """The same sizes with separate weights for embedding and head."""
        return dataclasses.replace(self, text=dataclasses.replace(self.text, tied=False))

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Read a released ``config.json``.

        Raises:
            ValueError: an entry is missing or invalid; names file, entry, expected and received.
        """
        try:
            return cls.from_dict(read_json(Path(path)))
        except ValueError as error:
            raise ValueError(f"{path}: not a valid Qwen2.5-Omni configuration: {error}") from error

    @classmethod
    def from_dict(cls, values: Any) -> ModelConfig:
        """Build from the parsed ``config.json`` of the whole model or of the thinker alone.

        The entry ``"omnizip": {"grid_slots": 36}``, absent in released files, is optional.

        Raises:
            ValueError: an entry is missing or invalid; names entry, expected and received.
        """
        whole = ConfigSection(values)
        whole.check_fixed("model_type", "qwen2_5_omni", "qwen2_5_omni_thinker")
        thinker = whole.section("thinker_config") if "thinker_config" in values else whole
        text = _read_text(thinker)
        seconds = thinker.get(integer("seconds_per_chunk", 30))
        rate = "position_id_per_seconds"
        thinker.check(
            thinker.get(integer(rate)) == AUDIO_TOKENS_PER_SECOND,
            rate,
            f"{AUDIO_TOKENS_PER_SECOND}, the audio tokens per second",
        )
        slots = integer("grid_slots")
        return cls(
            audio=_read_audio(thinker.section("audio_config"), text.hidden, seconds),
            vision=_read_vision(thinker.section("vision_config"), text.hidden),
            text=text,
            positions_per_second=AUDIO_TOKENS_PER_SECOND,
            seconds_per_chunk=seconds,
            grid_slots=whole.section("omnizip").get(slots) if "omnizip" in values else 144,
            **_read_tokens(thinker, text.vocabulary),
        )


def _read_text(thinker: ConfigSection) -> TextConfig:
    section = thinker.section("text_config")
    # transformers 5 writes `rope_parameters`; the released files have `rope_scaling`.
    rope = section.section(
        "rope_parameters" if section.values.get("rope_parameters") else "rope_scaling"
    )
    theta = section if section.values.get("rope_theta") is not None else rope
    tied = Entry("tie_word_embeddings", "true or false", lambda value: isinstance(value, bool))
    text = section.read(
        TextConfig,
        rope_theta=theta.get(positive("rope_theta")),
        mrope_section=rope.get(integers("mrope_section", MAX_COUNT)),
        tied=thinker.get(tied) if tied.name in thinker.values else False,
    )
    _check_heads(section, "num_attention_heads", "hidden_size", text.hidden, text.heads, unit=2)
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


def _read_audio(section: ConfigSection, output: int, seconds: int) -> AudioConfig:
    audio = section.read(AudioConfig)
    _check_heads(section, "encoder_attention_heads", "d_model", audio.hidden, audio.heads)
    section.check(audio.hidden % 2 == 0 and audio.hidden > 2, "d_model", "an even number above 2")
    block = 2 * AUDIO_TOKENS_PER_SECOND * seconds
    section.check(
        audio.n_window == block, "n_window", f"{block}, so that a block is one chunk of {seconds} s"
    )
    section.check(audio.output == output, "output_dim", f"{output}, the decoder's hidden_size")
    section.check_fixed("activation_function", "gelu")
    return audio


def _read_vision(section: ConfigSection, output: int) -> VisionConfig:
    vision = section.read(VisionConfig)
    _check_heads(section, "num_heads", "hidden_size", vision.hidden, vision.heads, unit=4)
    section.check(vision.channels == 3, "in_channels", "3: red, green, blue")
    token = vision.patch * vision.merge
    expected = f"at least patch_size * spatial_merge_size = {token}"
    section.check(vision.window >= token, "window_size", expected)
    expected = f"{output}, the decoder's hidden_size"
    section.check(vision.output == output, "out_hidden_size", expected)
    section.check_fixed("hidden_act", "silu")
    return vision


def _check_heads(
    section: ConfigSection, name: str, whole: str, hidden: int, heads: int, unit: int = 1
) -> None:
    """Check that heads divide the features; rotary angles need multiples of ``unit``."""
    groups = f" into multiples of {unit}" if unit > 1 else ""
    section.check(
        hidden % (heads * unit) == 0, name, f"a number that divides {whole} = {hidden}{groups}"
    )


def _read_tokens(thinker: ConfigSection, vocabulary: int) -> dict[str, int]:
    """Read the ids of placeholders and markers: inside the vocabulary and distinct."""
    tokens: dict[str, int] = {}
    for field, name in TOKENS.items():
        token = thinker.get(integer(name, vocabulary - 1, minimum=0))
        thinker.check(token not in tokens.values(), name, "an id that no other marker has")
        tokens[field] = token
    return tokens
