"""The rivals' mechanisms in PyTorch, from their published formulas.

Windows are whole (no masks), and nothing loops over windows. Each function returns masks of the
kept tokens. Counts are rounded as by the authors.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity, normalize


@torch.no_grad()
def evs(grids: torch.Tensor, share: float) -> torch.Tensor:
    """EVS: ``1 - cos(x_t, x_{t-1})`` in the same place, the first grid forced, one top K.

    Args:
        grids: ``[T, P, D]``.
    """
    scores = 1 - cosine_similarity(grids[1:], grids[:-1], dim=-1)
    scores = torch.cat([scores.new_full((1, scores.shape[1]), 3), scores])
    return _top(scores.flatten(), max(grids.shape[1], int(share * scores.numel()))).view_as(scores)


@torch.no_grad()
def dycoke(frames: torch.Tensor, rate: float) -> torch.Tensor:
    """DyCoke's TTM: of frames 1 and 3 against 0 and 2, and of 2 against 0, the least similar.

    Args:
        frames: ``[S, T, P, D]``, groups of four in each of S sequences.
        rate: k, the share of a compared frame that is discarded.
    """
    keep = torch.ones(frames.shape[:-1], dtype=torch.bool, device=frames.device)
    length = frames.shape[1]
    left = int((1 - rate) * frames.shape[2])
    for place, other in ((1, 0), (3, 2), (2, 0)):
        last = length - 2 if place == 2 else length  # the last group's frame 2 is kept whole
        these = torch.arange(place, last, 4, device=frames.device)
        alike = cosine_similarity(frames[:, these], frames[:, these - place + other], dim=-1)
        keep[:, these] = alike.argsort(dim=-1).argsort(dim=-1) < left
    return keep


@torch.no_grad()
def visionzip(
    video: torch.Tensor, keys: torch.Tensor, received: torch.Tensor, share: float, contextual: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """VisionZip over a whole clip: the mask, and the video with contextual tokens merged.

    Args:
        video, keys: ``[N, D]`` and ``[N, H]``.
        received: attention received in the last block, ``[N]``.
    """
    merged = round(contextual * len(received))
    dominant = _top(received, round(share * len(received)) - merged)
    others = (~dominant).nonzero()[:, 0]
    step = max(len(others) // merged, 1)
    targets = others[torch.arange(merged, device=others.device) * step]
    is_target = torch.zeros_like(dominant).index_fill(0, targets, True)
    rest = (~dominant & ~is_target).nonzero()[:, 0]
    unit = normalize(keys, dim=-1)
    nearest = (unit[rest] @ unit[targets].T).argmax(dim=-1)
    total = torch.zeros(merged, video.shape[1], device=video.device)
    total.index_add_(0, nearest, video[rest])
    count = torch.bincount(nearest, minlength=merged).clamp(min=1)
    out = video.clone()
    out[targets] += total / count[:, None]
    return dominant | is_target, out


@torch.no_grad()
def vidcom2(grids: torch.Tensor, share: float) -> torch.Tensor:
    """VidCom2: tokens least similar to the means of grid and clip; unusual grids keep more.

    Args:
        grids: ``[T, P, D]``.
    """
    flat = grids.flatten(0, 1)
    channels = flat.var(dim=0).topk(flat.shape[1] // 2, largest=False).indices
    unit = normalize(grids[..., channels], dim=-1)

    def similarity(centre: torch.Tensor) -> torch.Tensor:
        apart = (unit - centre).square().sum(dim=-1)
        widths = apart.new_tensor([0.125, 0.25, 0.5, 1.0, 2.0])
        return torch.exp(-apart[..., None] / (2 * widths)).sum(dim=-1)

    of_clip = similarity(unit.mean(dim=(0, 1)))
    of_grid = similarity(unit.mean(dim=1, keepdim=True))
    unusual = torch.softmax(-of_clip.mean(dim=1) / 0.01, dim=0)
    size = grids.shape[1]
    kept = (share * (1 + unusual - unusual.mean()) * size).int().clamp(max=size)
    place = (of_clip + of_grid).argsort(dim=1).argsort(dim=1)
    return place < kept[:, None]


@torch.no_grad()
def seats(tokens: torch.Tensor, received: torch.Tensor, share: float) -> torch.Tensor:
    """Stage I of SEATS: farthest points of ``D_ij a_j``, in each window.

    Args:
        tokens: ``[W, n, D]``.
        received: attention received, ``[W, n]``.
    """
    windows, size = received.shape
    unit = normalize(tokens, dim=-1)
    distance = (1 - unit @ unit.mT).clamp(min=0)
    distance *= received[:, None]
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    score = distance.amin(dim=1)
    distance.diagonal(dim1=1, dim2=2).zero_()
    keep = torch.zeros_like(received, dtype=torch.bool)
    rows = torch.arange(windows, device=tokens.device)
    count = round(round(1.4 * share * size, 6))  # a half is a half
    for step in range(min(max(count, 1), size)):
        chosen = score.masked_fill(keep, -torch.inf).argmax(dim=1)
        keep[rows, chosen] = True
        near = distance[rows, chosen]
        score = near if step == 0 else torch.minimum(score, near)
    return keep


@torch.no_grad()
def received_in_windows(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Attention that audio tokens receive inside their windows: mean over heads, in pairs.

    Args:
        queries, keys: ``[W, T, N, H]``.
    """
    queries, keys = queries.transpose(1, 2), keys.transpose(1, 2)
    weights = (queries @ keys.mT * keys.shape[-1] ** -0.5).softmax(dim=-1)
    return weights.sum(dim=2).mean(dim=1).unflatten(1, (-1, 2)).mean(dim=2)


def _top(scores: torch.Tensor, count: int) -> torch.Tensor:
    return torch.zeros_like(scores, dtype=torch.bool).index_fill(
        0, scores.topk(count).indices, True
    )
