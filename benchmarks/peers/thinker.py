"""transformers' thinker with sdpa attention, with the library's weights and inputs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from benchmarks.machine import synchronised, torch_device
from benchmarks.prompts import Prompt
from omnizip_jax.models.encoder_layers import normalise
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.vision import PIXEL_MEAN, PIXEL_STD
from omnizip_jax.models.registry import family
from omnizip_jax.models.weight_mapping import array_infos
from omnizip_jax.types import Window

# transformers 5 renames the released modules.
RENAMED = {
    "thinker.audio_tower.": "model.audio_tower.",
    "thinker.visual.": "model.visual.",
    "thinker.model.": "model.language_model.",
    "thinker.lm_head.": "lm_head.",
}


class Thinker:
    """The peer of the networks: all tokens, logits of the last token only.

    transformers itself computes the logits of every token; omitting that is in its favour.
    """

    def __init__(self, params: Params):
        self.config: Any = params.config
        self.device = torch_device()
        dtype = to_torch(np.zeros(0, params.dtype)).dtype
        with torch.device(self.device):
            model = Qwen2_5OmniThinkerForConditionalGeneration._from_config(
                _transformers_config(self.config), dtype=dtype, attn_implementation="sdpa"
            )
        self.model: Any = model.eval().requires_grad_(False)
        _copy_weights(params, dict(self.model.named_parameters()))

    def inputs(self, windows: Window, prompt: Prompt) -> dict[str, Any]:
        """Output of transformers' processor for whole windows and a prompt."""
        count, grids = windows.grid_mask.shape
        cells = np.asarray(windows.grid_size)[0]
        unit = self.config.vision.merge
        media = [self.config.video_token] * int(grids * cells.prod())
        media += [self.config.audio_token] * int((windows.mel_length[0] + 1) // 4)
        ids = torch.tensor(np.concatenate([prompt.prefix, media * count, prompt.suffix]))[None]
        patches = np.asarray(windows.patches)[:, :, : cells.prod() * unit**2]
        flat = jnp.asarray(patches.reshape(-1, patches.shape[-1]))
        pixels = np.asarray(normalise(flat, PIXEL_MEAN, PIXEL_STD))
        mel = np.concatenate(list(np.asarray(windows.mel)), axis=1)
        values = {
            "input_ids": ids.long(),
            "attention_mask": torch.ones_like(ids).long(),
            "pixel_values_videos": torch.tensor(pixels).to(self.model.dtype),
            "video_grid_thw": torch.tensor([[count * grids, *(cells * unit)]]),
            "video_second_per_grid": torch.tensor([1.0]),
            "input_features": torch.tensor(mel)[None].to(self.model.dtype),
            "feature_attention_mask": torch.ones(1, mel.shape[1], dtype=torch.long),
        }
        placed = {name: value.to(self.device) for name, value in values.items()}
        return placed | {"use_audio_in_video": True}

    def embedded(self, inputs: dict[str, Any], video: Any, audio: Any) -> dict[str, Any]:
        """The decoder's inputs, with the given features of the media."""
        ids = inputs["input_ids"]
        embeddings = self.model.get_input_embeddings()(ids)
        for token, features in (
            (self.config.video_token, video),
            (self.config.audio_token, audio),
        ):
            flat = to_torch(features).to(self.device).reshape(-1, embeddings.shape[-1])
            embeddings[ids == token] = flat
        positions, _ = self.model.model.get_rope_index(
            ids,
            None,
            inputs["video_grid_thw"],
            inputs["attention_mask"],
            True,
            inputs["feature_attention_mask"].sum(dim=1),
            inputs["video_second_per_grid"],
        )
        return {"inputs_embeds": embeddings, "position_ids": positions}

    @torch.no_grad()
    def encode(self, inputs: dict[str, Any]) -> Any:
        """Both encoders."""
        model = self.model.model
        return synchronised(
            lambda: (
                model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"]),
                model.get_audio_features(
                    inputs["input_features"], inputs["feature_attention_mask"]
                ),
            )
        )

    @torch.no_grad()
    def prefill(self, embedded: dict[str, Any]) -> tuple[Any, Any]:
        """The decoder over the prompt: logits of the first token, and the cache."""

        def call():
            out = self.model.model.language_model(**embedded, use_cache=True)
            return self.model.lm_head(out.last_hidden_state[0, -1]), out.past_key_values

        return synchronised(call)

    @torch.no_grad()
    def first_token(self, inputs: dict[str, Any]) -> Any:
        """Encoders and decoder: logits of the first token."""

        def call():
            self.model.model.rope_deltas = None
            out = self.model.model(**inputs, use_cache=True)
            return self.model.lm_head(out.last_hidden_state[0, -1])

        return synchronised(call)

    @torch.no_grad()
    def decode(self, logits: Any, cache: Any, position: int, tokens: int) -> tuple[Any, Any]:
        """Decode greedy tokens; changes the cache."""

        def call():
            nonlocal logits
            for i in range(tokens):
                token = logits.argmax()[None, None]
                place = torch.full((3, 1, 1), position + i, device=self.device)
                out = self.model.model.language_model(
                    input_ids=token, position_ids=place, past_key_values=cache, use_cache=True
                )
                logits = self.model.lm_head(out.last_hidden_state[0, -1])
            return logits

        return synchronised(call), cache


def to_torch(array: Any) -> torch.Tensor:
    """Copy an array to PyTorch on the host."""
    values = np.array(array)
    if values.dtype == jnp.bfloat16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def _copy_weights(params: Params, parameters: dict[str, Any]) -> None:
    """Copy the library's parameters to transformers' model, one at a time."""
    flat: Any = flatten_dict(params.weights)
    missing = {name for name in parameters if "audio_bos_eos_token" not in name}
    for leaf in array_infos(family(params.config).parameter_tree(params.config)):
        for released, part in leaf.views(np.asarray(flat[leaf.path])):
            prefix = next(old for old in RENAMED if released.startswith(old))
            name = RENAMED[prefix] + released.removeprefix(prefix)
            tensor = to_torch(np.ascontiguousarray(part)).reshape(leaf.released_shape)
            parameters[name].copy_(tensor)
            missing.remove(name)
    if missing:
        raise AssertionError(
            f"transformers has parameters that the library does not have: {sorted(missing)}"
        )


def _transformers_config(config: ModelConfig) -> Qwen2_5OmniThinkerConfig:
    audio, vision, text = config.audio, config.vision, config.text
    rope = {
        "rope_type": "default",
        "rope_theta": text.rope_theta,
        "mrope_section": list(text.mrope_section),
    }
    beside: dict[str, Any] = {  # in every released file, though not among the class's own names
        "vision_start_token_id": config.vision_start_token,
        "vision_end_token_id": config.vision_end_token,
    }
    return Qwen2_5OmniThinkerConfig(
        audio_config={
            "num_mel_bins": audio.mel_bins,
            "encoder_layers": audio.layers,
            "d_model": audio.hidden,
            "encoder_attention_heads": audio.heads,
            "encoder_ffn_dim": audio.ffn,
            "n_window": audio.n_window,
            "output_dim": audio.output,
        },
        vision_config={
            "depth": vision.layers,
            "hidden_size": vision.hidden,
            "num_heads": vision.heads,
            "intermediate_size": vision.ffn,
            "in_channels": vision.channels,
            "patch_size": vision.patch,
            "temporal_patch_size": vision.temporal_patch,
            "spatial_merge_size": vision.merge,
            "window_size": vision.window,
            "fullatt_block_indexes": list(vision.full_attention_layers),
            "out_hidden_size": vision.output,
        },
        text_config={
            "vocab_size": text.vocabulary,
            "num_hidden_layers": text.layers,
            "hidden_size": text.hidden,
            "num_attention_heads": text.heads,
            "num_key_value_heads": text.kv_heads,
            "intermediate_size": text.ffn,
            "max_position_embeddings": text.max_positions,
            "rms_norm_eps": text.rms_eps,
            "rope_parameters": rope,
            "tie_word_embeddings": text.tied,
        },
        audio_token_index=config.audio_token,
        video_token_index=config.video_token,
        image_token_index=config.vision_end_token - 1,
        audio_start_token_id=config.audio_start_token,
        audio_end_token_id=config.audio_end_token,
        position_id_per_seconds=config.positions_per_second,
        seconds_per_chunk=config.seconds_per_chunk,
        tie_word_embeddings=text.tied,
        **beside,
    )
