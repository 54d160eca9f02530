"""transformers' thinker on the same weights and the same tensors: the oracle of the whole path."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.vision import normalise
from omnizip_jax.prompt import Prompt
from omnizip_jax.types import Window
from tests.models.hf import to_flax


class Thinker:
    """The oracle, fed with windows and prompts like this library's functions."""

    def __init__(self, folder: Any, config: ModelConfig):
        self.config = config
        self.model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def weights(self) -> dict[str, Any]:
        """The parameters in our layout, by the test's own conversion."""
        model = self.model.model
        text = to_flax(model.language_model.state_dict())
        text["lm_head"] = {"weight": self.model.lm_head.weight.detach().numpy()}
        audio, vision = model.audio_tower.state_dict(), model.visual.state_dict()
        return {"audio": to_flax(audio), "vision": to_flax(vision), "text": text}

    def inputs(
        self, windows: Window | None, prompt: Prompt, seconds_per_grid: float = 1.0
    ) -> dict[str, Any]:
        """The tensors that transformers' processor would make of the same clip and question."""
        ids, out = [prompt.prefix], {}
        if windows is not None:
            grids = np.asarray(windows.grid_mask)
            cells = np.asarray(windows.grid_size)[0]
            lengths = np.asarray(windows.mel_length)
            unit = self.config.vision.merge**2
            for mask, length in zip(grids, lengths, strict=True):
                ids.append(np.full(mask.sum() * cells.prod(), self.config.video_token))
                ids.append(np.full((length + 1) // 4, self.config.audio_token))
            if grids.any():
                patches = np.asarray(windows.patches)[grids][:, : cells.prod() * unit]
                flat = patches.reshape(-1, patches.shape[-1])
                out["pixel_values_videos"] = torch.tensor(np.asarray(normalise(flat)))
                out["video_grid_thw"] = torch.tensor(
                    [[grids.sum(), *(cells * self.config.vision.merge)]]
                )
                out["video_second_per_grid"] = torch.tensor([seconds_per_grid])
            if lengths.any():
                pairs = zip(windows.mel, lengths, strict=True)
                mel = np.concatenate([np.asarray(m)[:, :n] for m, n in pairs], axis=1)
                out["input_features"] = torch.tensor(mel)[None]
                out["feature_attention_mask"] = torch.ones(1, mel.shape[1], dtype=torch.long)
            out["use_audio_in_video"] = bool(grids.any() and lengths.any())
        ids = torch.tensor(np.concatenate([*ids, prompt.suffix]))[None].long()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **out}

    @torch.no_grad()
    def logits(self, inputs: dict[str, Any]) -> np.ndarray:
        """Logits after every token of the prompt."""
        self.model.model.rope_deltas = None
        return self.model(**inputs).logits[0].numpy()

    @torch.no_grad()
    def greedy(self, inputs: dict[str, Any], tokens: int, end: tuple[int, ...]) -> list[int]:
        """The greedy continuation, end token included."""
        out = self.model.generate(
            **inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=list(end), pad_token_id=0
        )
        return out[0, inputs["input_ids"].shape[1] :].tolist()
