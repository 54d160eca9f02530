"""Models to measure: sizes, random weights and random clips. No files are read."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.prompts import Prompt
from benchmarks.random_checkpoint import build_tokenizer
from omnizip_jax.media import Clip
from omnizip_jax.models.config import TextConfig
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.models.parameters import ArrayInfo
from omnizip_jax.models.quantized import quantize
from omnizip_jax.models.qwen2_5_omni.config import AudioConfig, ModelConfig, VisionConfig
from omnizip_jax.models.qwen3_omni.config import AudioConfig as AudioConfig3
from omnizip_jax.models.qwen3_omni.config import ModelConfig as ModelConfig3
from omnizip_jax.models.qwen3_omni.config import VisionConfig as VisionConfig3
from omnizip_jax.models.registry import Config, family
from omnizip_jax.models.weight_mapping import abstract
from omnizip_jax.types import Window

TEXT_TOKENS = 60  # around the clip, as in a usual question: 22 before it and 38 after it


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes of a model and its clips.

    Attributes:
        model: sizes of the networks.
        windows: length of the clips in windows of 2 s.
        compression_windows, compression_width: of the clip in the ``compression`` suite, which
            needs no weights and can have the full size on every machine.
    """

    model: Config
    windows: int
    compression_windows: int
    compression_width: int


def _model(
    *,
    layers: int,
    width: int,
    heads: tuple[int, int],
    ffn: int,
    vocabulary: int,
    sections: tuple[int, int, int],
    encoder_layers: int,
    encoder_width: int,
    encoder_heads: tuple[int, int],
    encoder_ffn: tuple[int, int],
    full_attention: tuple[int, ...],
) -> ModelConfig:
    """A configuration; pairs are (queries, keys) for the decoder and (audio, vision) otherwise."""
    return ModelConfig(
        audio=AudioConfig(
            mel_bins=128,
            layers=encoder_layers,
            hidden=encoder_width,
            heads=encoder_heads[0],
            ffn=encoder_ffn[0],
            n_window=100,
            output=width,
        ),
        vision=VisionConfig(
            layers=encoder_layers,
            hidden=encoder_width,
            heads=encoder_heads[1],
            ffn=encoder_ffn[1],
            channels=3,
            patch=14,
            temporal_patch=2,
            merge=2,
            window=112,
            full_attention_layers=full_attention,
            output=width,
        ),
        text=TextConfig(
            vocabulary=vocabulary,
            layers=layers,
            hidden=width,
            heads=heads[0],
            kv_heads=heads[1],
            ffn=ffn,
            rope_theta=1e6,
            mrope_section=sections,
            rms_eps=1e-6,
            max_positions=32768,
            tied=False,
        ),
        positions_per_second=25,
        **_prompt(vocabulary),
    )


def _with_experts(
    *,
    layers: int,
    width: int,
    heads: tuple[int, int],
    head_size: int,
    expert_ffn: int,
    vocabulary: int,
    sections: tuple[int, int, int],
    encoder_layers: tuple[int, int],
    encoder_width: tuple[int, int],
    encoder_heads: tuple[int, int],
    encoder_ffn: tuple[int, int],
    channels: int,
    deepstack: tuple[int, ...],
) -> ModelConfig3:
    """A configuration of Qwen3-Omni, with its 128 experts; pairs as in ``_model``."""
    return ModelConfig3(
        audio=AudioConfig3(
            mel_bins=128,
            layers=encoder_layers[0],
            hidden=encoder_width[0],
            heads=encoder_heads[0],
            ffn=encoder_ffn[0],
            n_window=50,
            output=width,
            block=800,
            channels=channels,
        ),
        vision=VisionConfig3(
            layers=encoder_layers[1],
            hidden=encoder_width[1],
            heads=encoder_heads[1],
            ffn=encoder_ffn[1],
            channels=3,
            patch=16,
            temporal_patch=2,
            merge=2,
            output=width,
            positions=48**2,
            deepstack=deepstack,
        ),
        text=TextConfig(
            vocabulary=vocabulary,
            layers=layers,
            hidden=width,
            heads=heads[0],
            kv_heads=heads[1],
            ffn=expert_ffn,
            rope_theta=1e6,
            mrope_section=sections,
            rms_eps=1e-6,
            max_positions=65536,
            tied=False,
            head_dim=head_size,
            attention_bias=False,
            qk_norm=True,
            mrope_interleaved=True,
            experts=128,
            experts_per_token=8,
            expert_ffn=expert_ffn,
            deepstack_layers=len(deepstack),
        ),
        positions_per_second=13,
        **_prompt(vocabulary),
    )


def _prompt(vocabulary: int) -> dict[str, int]:
    """Marker ids at the end of the vocabulary, and the length of a window."""
    markers = ("audio", "video", "audio_start", "audio_end", "vision_start", "vision_end")
    ids = {f"{name}_token": vocabulary - i for i, name in enumerate(markers, start=1)}
    return {"seconds_per_chunk": 2, **ids}


_ENCODERS: dict[str, Any] = dict(
    encoder_layers=32,
    encoder_width=1280,
    encoder_heads=(20, 16),
    encoder_ffn=(5120, 3420),
    full_attention=(7, 15, 23, 31),
)

PRESETS = {
    "tiny": Preset(
        _model(
            layers=2,
            width=64,
            heads=(4, 2),
            ffn=128,
            vocabulary=512,
            sections=(2, 3, 3),
            encoder_layers=2,
            encoder_width=64,
            encoder_heads=(4, 2),
            encoder_ffn=(128, 128),
            full_attention=(1,),
        ),
        windows=2,
        compression_windows=4,
        compression_width=64,
    ),
    # The 3B with widths and depths divided by 4, at a quarter of the windows: encoders, matrices
    # and attention have the same shares of the operations as the 3B at 64 windows.
    "small": Preset(
        _model(
            layers=9,
            width=512,
            heads=(8, 1),
            ffn=2752,
            vocabulary=9496,
            sections=(8, 12, 12),
            encoder_layers=8,
            encoder_width=320,
            encoder_heads=(5, 4),
            encoder_ffn=(1280, 855),
            full_attention=(7,),
        ),
        windows=16,
        compression_windows=64,
        compression_width=3584,
    ),
    # The 30B with half its widths, four layers and small encoders: 4,142 tokens.
    "experts": Preset(
        _with_experts(
            layers=4,
            width=1024,
            heads=(16, 2),
            head_size=64,
            expert_ffn=384,
            vocabulary=9504,
            sections=(12, 10, 10),
            encoder_layers=(2, 4),
            encoder_width=(320, 288),
            encoder_heads=(5, 4),
            encoder_ffn=(1280, 1076),
            channels=48,
            deepstack=(1, 2),
        ),
        windows=13,
        compression_windows=64,
        compression_width=2048,
    ),
    "3b": Preset(
        _model(
            layers=36,
            width=2048,
            heads=(16, 2),
            ffn=11008,
            vocabulary=151936,
            sections=(16, 24, 24),
            **_ENCODERS,
        ),
        windows=64,
        compression_windows=64,
        compression_width=2048,
    ),
    "7b": Preset(
        _model(
            layers=28,
            width=3584,
            heads=(28, 4),
            ffn=18944,
            vocabulary=152064,
            sections=(16, 24, 24),
            **_ENCODERS,
        ),
        windows=64,
        compression_windows=64,
        compression_width=3584,
    ),
    # Qwen3-Omni-30B-A3B.
    "30b": Preset(
        _with_experts(
            layers=48,
            width=2048,
            heads=(32, 4),
            head_size=128,
            expert_ffn=768,
            vocabulary=152064,
            sections=(24, 20, 20),
            encoder_layers=(32, 27),
            encoder_width=(1280, 1152),
            encoder_heads=(20, 16),
            encoder_ffn=(5120, 4304),
            channels=480,
            deepstack=(8, 16, 24),
        ),
        windows=64,
        compression_windows=64,
        compression_width=2048,
    ),
}


def default_dtype() -> jnp.dtype:
    """float32 on a CPU, bfloat16 on an accelerator."""
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


def random_weights(config: Config, dtype: jnp.dtype, seed: int = 0) -> Any:
    """Random parameters, made on the device, with activations near unit scale."""
    leaves, structure = jax.tree.flatten_with_path(
        abstract(family(config).parameter_tree(config, dtype))
    )

    def make() -> Any:
        # This generator compiles and runs much faster than the default one.
        keys = jax.random.split(jax.random.key(seed, impl="rbg"), len(leaves))
        return jax.tree.unflatten(structure, map(_random_leaf, keys, leaves))

    return jax.jit(make)()


def quantized_weights(weights: Any, config: Config, bits: int) -> Any:
    """The weights with the decoder's matrices in so many bits, as conversion quantises them."""

    def convert(info: ArrayInfo, leaf: jax.Array) -> Any:
        if (own := info.quantized_bits(bits)) is None:
            return leaf
        return jax.tree.map(jnp.asarray, quantize(np.asarray(leaf), own)[0])

    return jax.tree.map(convert, family(config).parameter_tree(config), weights)


def random_params(config: Config, dtype: jnp.dtype, weights: Any = None) -> Params:
    """A model with random weights, unless given, and a matching tokenizer."""
    tokenizer = build_tokenizer()
    markers = {
        "audio_token": "<|AUDIO|>",
        "video_token": "<|VIDEO|>",
        "audio_start_token": "<|audio_bos|>",
        "audio_end_token": "<|audio_eos|>",
        "vision_start_token": "<|vision_bos|>",
        "vision_end_token": "<|vision_eos|>",
    }
    ids = {name: tokenizer.convert_tokens_to_ids(marker) for name, marker in markers.items()}
    weights = random_weights(config, dtype) if weights is None else weights
    return Params(weights, dataclasses.replace(config, **ids), tokenizer, dtype=dtype)


def _random_leaf(key: jax.Array, leaf: tuple[Any, jax.ShapeDtypeStruct]) -> jax.Array:
    path, shape = leaf
    name = path[-1].key
    noise = jax.random.normal(key, shape.shape, shape.dtype)
    if name == "bias":
        return 0.1 * noise
    if name == "scale":
        return 1 + 0.1 * noise
    fan_in = {"weight": shape.shape[-1], "kernel": math.prod(shape.shape[:-1])}.get(name, 1)
    return noise / jnp.asarray(math.sqrt(fan_in), shape.dtype)


def random_prompt(config: Config, seed: int = 0) -> Prompt:
    """Text around a clip with audio: the chat prompt's structure with random words."""
    words = np.random.default_rng(seed).integers(0, config.vision_end_token, TEXT_TOKENS, np.int32)
    before, after = words[:20], words[20 : TEXT_TOKENS - 4]
    prefix = [*before, config.vision_start_token, config.audio_start_token]
    suffix = [config.audio_end_token, config.vision_end_token, *after]
    prefix_positions, suffix_positions = np.arange(len(prefix)), np.arange(len(suffix))
    if family(config).MARKERS_SHARE_POSITION:
        prefix_positions[-1] -= 1
        suffix_positions[1:] -= 1
    return Prompt(
        *(np.array(x, np.int32) for x in (prefix, prefix_positions)),
        *(np.array(x, np.int32) for x in (suffix, suffix_positions)),
    )


def random_clip(count: int, config: Config) -> Clip:
    """``random_windows`` as a loaded clip."""
    return Clip(
        random_windows(count, config),
        duration=float(count * config.spec.seconds),
        seconds_per_grid=config.spec.seconds / config.spec.grids,
        has_video=True,
        has_audio=True,
        spec=config.spec,
    )


def random_windows(count: int, config: Config, seed: int = 0) -> Window:
    """A 16:9 clip of noise that uses every slot."""
    rng, empty = np.random.default_rng(seed), Window.empty(config.spec, count)
    leaves: dict[str, Any] = {
        "patches": rng.integers(0, 256, empty.patches.shape, np.uint8),
        "grid_size": empty.grid_size * np.array([9, 16], np.int32),
        "grid_mask": ~empty.grid_mask,
        "mel": rng.standard_normal(empty.mel.shape, np.float32),
        "mel_length": empty.mel_length + config.spec.mel_frames,
    }
    return empty.replace(**leaves)
