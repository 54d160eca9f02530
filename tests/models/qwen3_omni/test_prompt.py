"""Order and positions of a clip's tokens against transformers' ``get_rope_index``."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as sizes
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as networks

from omnizip_jax.models import qwen3_omni
from omnizip_jax.testbed.random_checkpoint import CONFIG
from tests.conftest import make_windows

OURS = qwen3_omni.ModelConfig.from_dict(CONFIG)
START = 2  # base of the clip: after two start markers


class Positions(networks.Qwen3OmniMoePreTrainedModelForConditionalGeneration):
    """transformers' rule without its networks."""

    def __init__(self):
        self.config = sizes.Qwen3OmniMoeThinkerConfig(**CONFIG["thinker_config"])
        self.spatial_merge_size = 2


def theirs(windows):
    """Placeholder kinds and positions of the tokens, and the position after the clip."""
    c, cells = OURS, np.asarray(windows.grid_size)[0]
    grids, mel = int(windows.grid_mask.sum()), int(windows.mel_length.sum())
    audio = [(i, 1) for i in range(int(qwen3_omni.audio_tokens(np.array(mel))))]
    video = [(13 * i, 0) for i in range(grids) for _ in range(cells.prod())]
    kinds = [kind for _, kind in sorted([*video, *audio], key=lambda token: token[0])]
    ids = [c.vision_start_token] * (grids > 0) + [c.audio_start_token] * (mel > 0)
    begin = len(ids)
    ids += [c.audio_token if kind else c.video_token for kind in kinds]
    ids += [c.audio_end_token] * (mel > 0) + [c.vision_end_token] * (grids > 0) + [7]
    places, _ = Positions().get_rope_index(
        torch.tensor([ids]),
        video_grid_thw=torch.tensor([[grids, *(2 * cells)]]) if grids else None,
        attention_mask=torch.ones(1, len(ids)),
        use_audio_in_video=grids > 0 and mel > 0,
        audio_seqlens=torch.tensor([mel]),
        second_per_grids=torch.tensor([1.0]),
    )
    places = places[:, 0].numpy() - begin + START
    body = slice(begin, begin + len(kinds))
    return np.array(kinds), places[:, body], places[0, body.stop]


@pytest.mark.parametrize("cells", [(3, 5), (1, 30), (30, 1)])
@pytest.mark.parametrize(
    ("grids", "mel"),
    [
        ([2, 2], [200, 200]),
        ([2, 2, 1], [200, 200, 77]),
        ([2, 2, 2], [200, 40, 0]),
        ([2, 2], [200, 100]),
        ([2, 2], [200, 108]),
        ([2, 0, 0], [200, 200, 131]),
        ([2, 1], [0, 0]),
        ([0, 0], [200, 55]),
    ],
)
def test_equal_transformers(grids, mel, cells):
    windows = make_windows(grids, mel, cells, OURS.spec)
    slots, audio_slots = OURS.spec.grid_slots, OURS.spec.audio_slots
    kinds, places, after = [], [], None
    for i in range(len(grids)):
        window = windows.replace(
            **{name: getattr(windows, name)[i] for name in windows.__dataclass_fields__}
        )
        time = START + OURS.window_positions * i
        mask = np.arange(audio_slots) < qwen3_omni.audio_tokens(window.mel_length)
        cell = np.arange(slots) < np.prod(window.grid_size)
        exists = np.concatenate([(window.grid_mask[:, None] & cell).ravel(), mask])
        order = np.asarray(qwen3_omni.token_order(window, slots, audio_slots))
        order = order[exists[order]]
        own = qwen3_omni.window_positions(window, time, START, slots, audio_slots)
        kinds.append(order >= OURS.spec.video_slots)
        places.append(np.asarray(own)[:, order])
        if exists.any():
            after = qwen3_omni.position_after(window, jnp.asarray(mask), time, START)
    expected, their_places, their_after = theirs(windows)
    np.testing.assert_array_equal(np.concatenate(kinds), expected)
    np.testing.assert_array_equal(np.concatenate(places, axis=1), their_places)
    assert after == their_after
