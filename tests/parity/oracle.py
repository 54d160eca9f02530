"""transformers' thinker on the same weights and the same tensors: the oracle of the whole path."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import (
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen3OmniMoeThinkerForConditionalGeneration,
)

from benchmarks.prompts import Prompt
from omnizip_jax.models.encoder_layers import normalise
from omnizip_jax.models.qwen2_5_omni.vision import PIXEL_MEAN, PIXEL_STD
from omnizip_jax.models.registry import Config, family
from omnizip_jax.types import Selection, Window
from tests.models.hf import to_flax

_NONE = np.zeros(0, np.int32)
_NOTHING = Prompt(_NONE, _NONE, _NONE, _NONE)


class Thinker:
    """The oracle, fed with windows and prompts like this library's functions."""

    def __init__(self, folder: Any, config: Config):
        self.config = config
        self.interleaved = config.text.experts > 0  # Qwen3-Omni, otherwise Qwen2.5-Omni
        network: Any = (
            Qwen3OmniMoeThinkerForConditionalGeneration
            if self.interleaved
            else Qwen2_5OmniThinkerForConditionalGeneration
        )
        self.model = network.from_pretrained(
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
            ids += self._media(grids, cells.prod(), lengths, seconds_per_grid)
            if grids.any():
                patches = np.asarray(windows.patches)[grids][:, : cells.prod() * unit]
                flat = patches.reshape(-1, patches.shape[-1])
                pixels = np.asarray(normalise(flat, *self._pixel_scale))
                out["pixel_values_videos"] = torch.tensor(pixels)
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

    @property
    def _pixel_scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return ((0.5,) * 3, (0.5,) * 3) if self.interleaved else (PIXEL_MEAN, PIXEL_STD)

    def _media(self, grids, cells: int, lengths, seconds_per_grid: float) -> list[np.ndarray]:
        """Placeholders of a clip in the order of transformers' processor."""
        c = self.config
        if not self.interleaved:  # window after window
            pairs = zip(grids.sum(1) * cells, (lengths + 1) // 4, strict=True)
            kinds = (c.video_token, c.audio_token)
            return [np.full(n, kind) for pair in pairs for n, kind in zip(pair, kinds, strict=True)]
        seconds, rest = divmod(int(lengths.sum()), 100)
        audio = [(float(i), c.audio_token) for i in range(13 * seconds + -(-rest // 8))]
        video = [(13 * seconds_per_grid * i, c.video_token) for i in range(grids.sum())]
        merged = sorted([*video, *audio], key=lambda token: token[0])  # stable: a tie is video's
        return [np.full(cells if kind == c.video_token else 1, kind) for _, kind in merged]

    def conversation(self, ids: list[int], clips: list[Window]) -> dict[str, Any]:
        """The same of a conversation in which the template put one placeholder for every clip.

        Positions are what ``get_rope_index`` gives each clip with the text after it: it knows no
        conversation in which some videos have sound of their own and others have none.
        """
        c, places = self.config, []
        rest, pieces, start = iter(clips), [[]], 0
        for place in [i for i, x in enumerate(ids) if x in (c.video_token, c.audio_token)]:
            windows = next(rest)
            both = bool(np.any(windows.mel_length) and np.any(windows.grid_mask))
            inner = self.inputs(windows, _NOTHING)["input_ids"][0].tolist()
            wrapped = [c.audio_start_token, *inner, c.audio_end_token] if both else inner
            pieces[-1] += ids[start : place - 1]
            pieces.append([ids[place - 1], *wrapped])
            start = place + 1
        pieces[-1] += ids[start:]
        pieces = [pieces[0] + pieces[1], *pieces[2:]] if clips else pieces
        media = [self.inputs(windows, _NOTHING) for windows in clips]
        for piece, inputs in zip(pieces, media or [{}], strict=True):
            inputs = inputs | {"input_ids": torch.tensor(piece)[None]}
            begins = places[-1][:, :, -1].max() + 1 if places else 0
            places.append(self.positions(inputs) + begins)
        out = {"input_ids": torch.tensor([i for piece in pieces for i in piece])[None]}
        for name in ("pixel_values_videos", "video_grid_thw", "video_second_per_grid"):
            if found := [inputs[name] for inputs in media if name in inputs]:
                out[name] = torch.cat(found)
        if mels := [inputs["input_features"][0] for inputs in media if "input_features" in inputs]:
            lengths = torch.tensor([mel.shape[1] for mel in mels])
            longest = int(lengths.max())
            padded = [torch.nn.functional.pad(mel, (0, longest - mel.shape[1])) for mel in mels]
            out["input_features"] = torch.stack(padded)
            out["feature_attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        out["position_ids"] = torch.cat(places, dim=2)
        return out | {"attention_mask": torch.ones_like(out["input_ids"])}

    def positions(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Positions of every token, by transformers' own rule: [3, 1, T]."""
        mask = inputs.get("feature_attention_mask")
        found, _ = self.model.model.get_rope_index(
            inputs["input_ids"],
            video_grid_thw=inputs.get("video_grid_thw"),
            attention_mask=torch.ones_like(inputs["input_ids"]),
            use_audio_in_video=inputs.get("use_audio_in_video", False),
            audio_seqlens=None if mask is None else mask.sum(1),
            second_per_grids=inputs.get("video_second_per_grid"),
        )
        return found

    def continued(self, inputs: dict[str, Any], tokens: int, end: tuple[int, ...]) -> list[int]:
        """The greedy continuation of a conversation, one whole prefill after the other."""
        made: list[int] = []
        while len(made) < tokens and not (made and made[-1] in end):
            token = int(self.logits(inputs)[-1].argmax())
            made.append(token)
            ids = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
            places = inputs["position_ids"]
            following = places[:, :, -1:].max().expand(3, 1, 1) + 1
            inputs = inputs | {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "position_ids": torch.cat([places, following], dim=2),
            }
        return made

    @torch.no_grad()
    def logits(self, inputs: dict[str, Any]) -> np.ndarray:
        """Logits after every token of the prompt."""
        self.model.model.rope_deltas = None
        return self.model(**inputs).logits[0].numpy()

    @torch.no_grad()
    def pruned_logits(
        self, inputs: dict[str, Any], windows: Window, selection: Selection
    ) -> np.ndarray:
        """Logits after the kept tokens of a clip's prompt, at their positions in the whole one.

        Anchors have the embeddings of the selection. Kept video tokens keep their DeepStack rows.
        """
        decoder, whole = self.model.model.language_model, {}
        hook = decoder.register_forward_pre_hook(
            lambda _, args, arguments: whole.update(arguments), with_kwargs=True
        )
        self.logits(inputs)
        hook.remove()
        ids = inputs["input_ids"][0].numpy()
        audio, video = ids == self.config.audio_token, ids == self.config.video_token
        lengths = family(self.config).audio_tokens(np.asarray(windows.mel_length))
        audio_keep = np.asarray(selection.audio_keep)
        exists = np.arange(audio_keep.shape[1]) < lengths[:, None]
        anchors = (audio_keep & ~np.asarray(selection.audio_salient))[exists]
        embeddings = whole["inputs_embeds"]
        embeddings[0, np.flatnonzero(audio)[anchors]] = torch.tensor(
            np.asarray(selection.audio)[exists][anchors]
        )
        keep, cells = np.ones(len(ids), bool), np.asarray(windows.grid_size)[0].prod()
        keep[audio] = audio_keep[exists]
        keep[video] = np.asarray(selection.video_keep)[windows.grid_mask][:, :cells].ravel()
        deepstack = {}
        if self.interleaved:
            rows = whole["deepstack_visual_embeds"]
            deepstack["deepstack_visual_embeds"] = [each[keep[video]] for each in rows]
            deepstack["visual_pos_masks"] = whole["visual_pos_masks"][:, keep]
        hidden = decoder(
            inputs_embeds=embeddings[:, keep],
            position_ids=whole["position_ids"][..., keep],
            **deepstack,
        ).last_hidden_state
        return self.model.lm_head(hidden)[0, -1].numpy()

    @torch.no_grad()
    def greedy(self, inputs: dict[str, Any], tokens: int, end: tuple[int, ...]) -> list[int]:
        """The greedy continuation, end token included."""
        out = self.model.generate(
            **inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=list(end), pad_token_id=0
        )
        return out[0, inputs["input_ids"].shape[1] :].tolist()
