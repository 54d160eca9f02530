"""The sizes of Qwen2.5-Omni's thinker, read from the released ``config.json``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from omnizip_jax.config import WindowSpec
from omnizip_jax.models.config import TextConfig
from omnizip_jax.models.config_schema import LAYERS, MOST, ConfigSection

TOKENS_PER_SECOND = 25  # of sound: 100 mel frames, halved by a convolution and by pooling

_FRAMES_PER_SECOND = 2


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """Sizes of the audio encoder (``thinker_config.audio_config``)."""

    mel_bins: int
    layers: int
    hidden: int
    heads: int
    ffn: int
    n_window: int  # half an attention block, in mel frames; a block is one 2 s window
    output: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision encoder (``thinker_config.vision_config``)."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    channels: int
    patch: int  # pixels along a patch's side
    temporal_patch: int  # frames in a grid
    merge: int  # patches along the side of a merged token
    window: int  # pixels along the side of an attention window
    full_attention_layers: tuple[int, ...]
    output: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def patch_values(self) -> int:
        """Values in one patch, channels x frames x rows x columns (1176 as released)."""
        return self.channels * self.temporal_patch * self.patch**2


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything the networks need to know, read from the released ``config.json``."""

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
    grid_slots: int = 144  # tokens of a grid that the model was trained on

    @property
    def spec(self) -> WindowSpec:
        """The shape of the windows that the model reads."""
        vision = self.vision
        return WindowSpec(
            seconds=self.seconds_per_chunk,
            audio_slots=self.audio.n_window // 2,  # four mel frames to a token
            grids=_FRAMES_PER_SECOND * self.seconds_per_chunk // vision.temporal_patch,
            grid_slots=self.grid_slots,
            patch=vision.patch,
            merge=vision.merge,
            temporal_patch=vision.temporal_patch,
            mel_bins=self.audio.mel_bins,
            positions_per_second=self.positions_per_second,
        )

    @property
    def window_positions(self) -> int:
        """Positions between the beginnings of two windows (50 as released)."""
        return self.spec.positions

    def untied(self) -> ModelConfig:
        """The same, with a head of its own."""
        return dataclasses.replace(self, text=dataclasses.replace(self.text, tied=False))

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Read a released ``config.json``.

        Raises:
            ValueError: names the file, and the entry that is missing or unfit.
        """
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not a readable JSON file ({error})") from error
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: not a fit Qwen2.5-Omni configuration: {error}") from error

    @classmethod
    def from_dict(cls, values: Any) -> ModelConfig:
        """Build from the parsed ``config.json`` of the whole model or of the thinker alone.

        An entry of our own, ``"omnizip": {"grid_slots": 36}``, is optional.

        Raises:
            ValueError: names the entry that is missing or unfit, what was expected and what came.
        """
        whole = ConfigSection(values)
        thinker = whole.part("thinker_config") if "thinker_config" in values else whole
        text = _read_text(thinker)
        seconds = thinker.count("seconds_per_chunk", most=30)
        thinker.check(
            thinker.count("position_id_per_seconds") == TOKENS_PER_SECOND,
            "position_id_per_seconds",
            f"{TOKENS_PER_SECOND}, the audio tokens of a second",
        )
        return cls(
            audio=_read_audio(thinker.part("audio_config"), text.hidden, seconds),
            vision=_read_vision(thinker.part("vision_config"), text.hidden),
            text=text,
            positions_per_second=TOKENS_PER_SECOND,
            seconds_per_chunk=seconds,
            grid_slots=whole.part("omnizip").count("grid_slots") if "omnizip" in values else 144,
            **_read_tokens(thinker, text.vocabulary),
        )


def _read_text(thinker: ConfigSection) -> TextConfig:
    section = thinker.part("text_config")
    # transformers 5 writes `rope_parameters`; the released files have `rope_scaling`.
    rope = section.part(
        "rope_parameters" if section.values.get("rope_parameters") else "rope_scaling"
    )
    theta = section if section.values.get("rope_theta") is not None else rope
    text = TextConfig(
        vocabulary=section.count("vocab_size"),
        layers=section.count("num_hidden_layers", LAYERS),
        hidden=section.count("hidden_size"),
        heads=section.count("num_attention_heads"),
        kv_heads=section.count("num_key_value_heads"),
        ffn=section.count("intermediate_size"),
        rope_theta=theta.positive("rope_theta"),
        mrope_section=rope.indices("mrope_section", MOST),  # pyright: ignore[reportArgumentType]
        rms_eps=section.positive("rms_norm_eps"),
        max_positions=section.count("max_position_embeddings"),
        tied=thinker.flag("tie_word_embeddings"),
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
    section.fixed("head_dim", text.head_dim, None)
    section.fixed("hidden_act", "silu")
    section.fixed("use_sliding_window", False, None)
    section.fixed("layer_types", ["full_attention"] * text.layers, None)
    for name in ("rope_type", "type"):
        rope.fixed(name, "default", "mrope")
    return text


def _read_audio(section: ConfigSection, output: int, seconds: int) -> AudioConfig:
    audio = AudioConfig(
        mel_bins=section.count("num_mel_bins"),
        layers=section.count("encoder_layers", LAYERS),
        hidden=section.count("d_model"),
        heads=section.count("encoder_attention_heads"),
        ffn=section.count("encoder_ffn_dim"),
        n_window=section.count("n_window"),
        output=section.count("output_dim"),
    )
    _check_heads(section, "encoder_attention_heads", "d_model", audio.hidden, audio.heads)
    section.check(audio.hidden % 2 == 0 and audio.hidden > 2, "d_model", "an even number above 2")
    section.check(
        audio.n_window == 2 * TOKENS_PER_SECOND * seconds,
        "n_window",
        f"{2 * TOKENS_PER_SECOND * seconds}, so that a block is one chunk of {seconds} s",
    )
    section.check(audio.output == output, "output_dim", f"{output}, the decoder's hidden_size")
    section.fixed("activation_function", "gelu")
    return audio


def _read_vision(section: ConfigSection, output: int) -> VisionConfig:
    vision = VisionConfig(
        layers=section.count("depth", LAYERS),
        hidden=section.count("hidden_size"),
        heads=section.count("num_heads"),
        ffn=section.count("intermediate_size"),
        channels=section.count("in_channels"),
        patch=section.count("patch_size", most=2**8),
        temporal_patch=section.count("temporal_patch_size", most=2**5),
        merge=section.count("spatial_merge_size", most=2**5),
        window=section.count("window_size", most=2**10),
        # transformers, too, allows for layers that are not there
        full_attention_layers=section.indices("fullatt_block_indexes", LAYERS),
        output=section.count("out_hidden_size"),
    )
    _check_heads(section, "num_heads", "hidden_size", vision.hidden, vision.heads, unit=4)
    section.check(vision.channels == 3, "in_channels", "3: red, green, blue")
    token = vision.patch * vision.merge
    section.check(
        vision.window >= token,
        "window_size",
        f"at least patch_size * spatial_merge_size = {token}",
    )
    section.check(
        vision.output == output, "out_hidden_size", f"{output}, the decoder's hidden_size"
    )
    section.fixed("hidden_act", "silu")
    return vision


def _check_heads(
    section: ConfigSection, name: str, whole: str, hidden: int, heads: int, unit: int = 1
) -> None:
    """Heads share the features evenly; rotary angles turn them in groups of ``unit``."""
    groups = f" into multiples of {unit}" if unit > 1 else ""
    section.check(
        hidden % (heads * unit) == 0, name, f"a number that divides {whole} = {hidden}{groups}"
    )


def _read_tokens(thinker: ConfigSection, vocabulary: int) -> dict[str, int]:
    """The ids of the markers around media: inside the vocabulary, no two the same."""
    names = {
        "audio_token": "audio_token_index",
        "video_token": "video_token_index",
        "audio_start_token": "audio_start_token_id",
        "audio_end_token": "audio_end_token_id",
        "vision_start_token": "vision_start_token_id",
        "vision_end_token": "vision_end_token_id",
    }
    tokens: dict[str, int] = {}
    for ours, name in names.items():
        token = thinker.index(name, vocabulary)
        thinker.check(token not in tokens.values(), name, "an id that no other marker has")
        tokens[ours] = token
    return tokens
