"""The published rule step by step in PyTorch, with the loops that its authors' code has.

Written from a description of that code (github.com/KD-TAO/OmniZip): a flat prompt goes in; anchors,
windows and grids are Python loops; the similarity to all video is computed once for the ranking of
candidates and again for every anchor's weights.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from omnizip_jax.compression import PublishedOmniZip


@torch.no_grad()
def compress(
    embeddings: torch.Tensor,
    ids: torch.Tensor,
    scores: torch.Tensor,
    grid: int,
    audio_id: int,
    video_id: int,
    config: PublishedOmniZip,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask of the prompt's tokens that stay, and the prompt with merged anchors.

    Args:
        embeddings: the prompt, ``[L, D]``.
        ids: its token ids, ``[L]``.
        scores: importance of each audio token.
        grid: tokens of one temporal grid.
    """
    embeddings = embeddings.clone()
    audio_at, video_at = ((ids == i).nonzero()[:, 0] for i in (audio_id, video_id))
    audio, video = embeddings[audio_at], embeddings[video_at]
    keep_audio, anchors, groups = _select(audio, video, scores, config)
    _merge(embeddings, audio_at, audio, video, anchors, groups)
    keep_video = _prune_video(video, grid, _runs(audio_at), _runs(video_at), keep_audio, config)
    keep = torch.ones(len(ids), dtype=torch.bool)
    keep[audio_at], keep[video_at] = keep_audio, keep_video
    return keep, embeddings


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / (x.norm(dim=-1, keepdim=True) + 1e-6)


def _select(audio, video, scores, config: PublishedOmniZip):
    """Salient tokens, anchors, and the candidates that each anchor takes."""
    count = len(audio)
    keep = torch.zeros(count, dtype=torch.bool)
    keep[scores.topk(min(max(round((1 - config.rho_audio) * count), 0), count)).indices] = True
    others = (~keep).nonzero()[:, 0]
    wanted = min(round(config.anchor_ratio * count), len(others))
    if config.merge_size == 0 or wanted == 0:
        return keep, [], []
    step = max(1, len(others) // wanted)
    anchors = []
    for number in range(wanted):
        anchors.append(int(others[number * step]))
    keep[anchors] = True
    rest = (~keep).nonzero()[:, 0]
    features = _unit(audio)
    likeness = features[rest] @ features[anchors].T
    nearest = likeness.argmax(dim=1)
    if len(video):
        relevance = (features[rest] @ _unit(video).T).amax(dim=1)
    else:
        relevance = likeness.amax(dim=1)
    groups = []
    for number in range(wanted):
        mine = (nearest == number).nonzero()[:, 0]
        best = relevance[mine].topk(min(config.merge_size, len(mine))).indices
        groups.append(rest[mine[best]].tolist())
    return keep, anchors, groups


def _merge(embeddings, audio_at, audio, video, anchors, groups) -> None:
    """Each anchor with its group, weighted by the similarity to the video, in place."""
    video = _unit(video)
    for number, (anchor, group) in enumerate(zip(anchors, groups, strict=True)):
        if not group:
            continue
        members = audio[group]
        others = video if len(video) else _unit(audio[anchors[number]])[None]
        weights = (_unit(members) @ others.T).amax(dim=1).softmax(dim=0)
        total = audio[anchor] + (weights[:, None] * members).sum(dim=0)
        embeddings[audio_at[anchor]] = total / (1 + weights.sum())


def _runs(places: torch.Tensor) -> list[tuple[int, int]]:
    """Start and end of every contiguous run, counted in tokens of the modality."""
    if not len(places):
        return []
    gaps = ((places[1:] - places[:-1]) > 1).nonzero()[:, 0] + 1
    edges = [0, *gaps.tolist(), len(places)]
    return list(itertools.pairwise(edges))


def _rates(retention: list[float], sizes: list[int], total: int, config: PublishedOmniZip):
    """Eq. 5, then one scaling and one correction of all windows but the first two extremes."""
    low, high = config.rho_min, config.rho_max
    rates = [min(max(high - (high - low) * kept, low), high) for kept in retention]
    sizes_guided = sizes[: len(rates)]
    if len(rates) <= 2:
        return rates
    target = config.rho_video * total - config.rho_video * (total - sum(sizes_guided))
    spent = sum(rate * size for rate, size in zip(rates, sizes_guided, strict=True))
    if abs(spent - target) <= 1e-3:
        return rates
    ends = (rates.index(min(rates)), rates.index(max(rates)))
    fixed = sum(rates[i] * sizes_guided[i] for i in ends)
    free = [i for i in range(len(rates)) if i not in ends]
    if not free:
        return rates
    scale = (target - fixed) / sum(rates[i] * sizes_guided[i] for i in free)
    for i in free:
        rates[i] = min(max(rates[i] * scale, low), high)
    missing = target - sum(rate * size for rate, size in zip(rates, sizes_guided, strict=True))
    correction = missing / sum(sizes_guided[i] for i in free)
    for i in free:
        rates[i] = min(max(rates[i] + correction, low), high)
    return rates


def _prune_video(video, grid, audio_runs, video_runs, keep_audio, config: PublishedOmniZip):
    """Window by window and grid by grid: density peaks in even grids, novelty in odd ones."""
    keep = torch.zeros(len(video), dtype=torch.bool)
    guided = list(zip(audio_runs, video_runs, strict=False))
    retention = []
    for (start, end), _ in guided:
        retention.append(keep_audio[start:end].float().mean().item())
    sizes = [end - start for start, end in video_runs]
    rates = _rates(retention, sizes, len(video), config)
    rates += [config.rho_video] * (len(video_runs) - len(rates))
    for (start, end), rate in zip(video_runs, rates, strict=True):
        if end - start < grid:
            keep[start:end] = True
            continue
        wanted = int(grid * (1 - rate))
        for number in range((end - start) // grid):
            first = start + number * grid
            tokens = video[first : first + grid]
            if number % 2:
                before = F.normalize(video[first - grid : first], dim=-1)
                likeness = (F.normalize(tokens, dim=-1) * before).sum(dim=-1)
                best = (-likeness).topk(wanted).indices
            else:
                best = _density_peaks(tokens, config.knn).topk(wanted).indices
            keep[first + best] = True
    return keep


def _density_peaks(tokens: torch.Tensor, knn: int) -> torch.Tensor:
    unit = F.normalize(tokens, dim=-1)
    distance = 1 - unit @ unit.T
    alone = distance.clone().fill_diagonal_(float("inf"))
    nearest = alone.topk(min(knn, len(tokens) - 1), dim=1, largest=False).values
    density = (-nearest.mean(dim=1)).exp()
    denser = density[None, :] > density[:, None]
    delta = distance.masked_fill(~denser, float("inf")).amin(dim=1)
    is_peak = ~denser.any(dim=1)
    if is_peak.any():
        delta[is_peak] = distance[is_peak].amax(dim=1)
    return delta * density
