"""Floating-point operations of encoders and compression, and weights read in decoding."""

from __future__ import annotations

from omnizip_jax.evaluation.decoder_cost import layer_weights
from omnizip_jax.models.config import BaseAudioConfig, BaseVisionConfig, TextConfig
from omnizip_jax.models.qwen2_5_omni.config import VisionConfig
from omnizip_jax.models.qwen3_omni.config import AudioConfig as AudioConfig3
from omnizip_jax.models.qwen3_omni.config import VisionConfig as VisionConfig3
from omnizip_jax.models.registry import Config

PATCHES_PER_TOKEN = 4


def vision_flops(config: BaseVisionConfig, tokens: int) -> float:
    """Operations of one temporal grid."""
    patches, d = tokens * PATCHES_PER_TOKEN, config.hidden
    if isinstance(config, VisionConfig3):
        matrices = config.layers * (4 * d * d + 2 * d * config.ffn) + config.patch_values * d
        attention = 4.0 * config.layers * patches * patches * d
        merged = d * config.merge**2
        mergers = (1 + len(config.deepstack)) * merged * (merged + config.output)
        return 2.0 * patches * matrices + attention + 2.0 * tokens * mergers
    assert isinstance(config, VisionConfig)
    window = (config.window // config.patch) ** 2
    full = len(config.full_attention_layers)
    matrices = config.layers * (4 * d * d + 3 * d * config.ffn) + config.patch_values * d
    attended = full * patches + (config.layers - full) * min(window, patches)
    merged = d * config.merge**2
    merger = merged * (merged + config.output)
    return 2.0 * patches * matrices + 4.0 * patches * attended * d + 2.0 * tokens * merger


def audio_flops(config: BaseAudioConfig) -> float:
    """Operations of one window of 2 s; the halved sizes of Qwen3's convolutions are of 1 s."""
    if isinstance(config, AudioConfig3):
        d, channels, attended = config.hidden, config.channels, 13 * config.block // 100
        inner = 64 * 50 + (32 * 25 + 16 * 13) * channels
        convolutions = 9 * channels * inner + 13 * 16 * channels * d
        layers = config.layers * 13 * (4 * d * d + 2 * d * config.ffn + 2 * attended * d)
        return 2.0 * 2 * (convolutions + layers + 13 * d * (d + config.output))
    frames, d = config.n_window, config.hidden
    convolutions = 2 * frames * 3 * config.mel_bins * d + frames * 3 * d * d
    layers = config.layers * frames * (4 * d * d + 2 * d * config.ffn + 2 * frames * d)
    return 2.0 * (convolutions + layers + frames // 2 * d * config.output)


def encoder_flops(config: Config, windows: int, grids: int = 2, tokens: int = 144) -> float:
    """Operations of both encoders for a clip."""
    return windows * (grids * vision_flops(config.vision, tokens) + audio_flops(config.audio))


def decode_weights(config: TextConfig) -> int:
    """Weights read per decoded token: those of the layers and the output matrix."""
    return config.layers * layer_weights(config) + config.hidden * config.vocabulary


def compression_flops(windows: int, width: int, audio: int = 50, grid: int = 144) -> float:
    """Operations of the paper's rule: audio with video, one grid with itself, one novelty."""
    return 2.0 * windows * width * (2 * audio * grid + grid * grid + grid)


def published_flops(windows: int, width: int, share: float, audio: int = 50, grid: int = 144):
    """Operations of the published rule: all candidates with all video of a clip, then as above."""
    candidates = share * windows * audio
    return 2.0 * windows * width * (2 * candidates * grid + grid * grid + grid)
