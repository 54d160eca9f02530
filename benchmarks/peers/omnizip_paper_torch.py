"""The paper's rule in PyTorch, all windows in one batch.

Windows are whole (no masks), features are normalised once, and every similarity is one batched
product; nothing loops over windows, anchors or tokens.
"""

from __future__ import annotations

import torch

from omnizip_jax.compression import OmniZipConfig


@torch.no_grad()
def compress(
    audio: torch.Tensor, scores: torch.Tensor, video: torch.Tensor, config: OmniZipConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Merged audio ``[W, A, D]``, kept audio ``[W, A]`` and kept video ``[W, 2, P]``.

    Args:
        audio: ``[W, A, D]``.
        scores: importance of each audio token, ``[W, A]``.
        video: two grids a window, ``[W, 2, P, D]``.
    """
    windows, slots = scores.shape
    salient = torch.zeros(windows * slots, dtype=torch.bool, device=audio.device)
    salient[scores.reshape(-1).topk(round((1 - config.rho_audio) * salient.numel())).indices] = True
    salient = salient.view(windows, slots)

    squares = video.square().sum(dim=-1)
    merged, anchors = _consolidate(audio, salient, video, squares.sqrt(), config)
    keep_audio = salient | anchors
    kept = video.shape[1] * video.shape[2] - _discards(
        keep_audio.float().mean(dim=1), video.shape[1] * video.shape[2], config
    )
    first = (kept + 1) // 2
    counts = torch.stack([first, kept - first], dim=1)
    interest = torch.stack(
        [_density_peaks(video[:, 0], squares[:, 0], config.knn), _novelty(video, squares)], dim=1
    )
    rank = interest.argsort(dim=-1, descending=True).argsort(dim=-1)
    return merged, keep_audio, rank < counts[..., None]


@torch.no_grad()
def scores(queries: torch.Tensor, keys: torch.Tensor, block: int = 512) -> torch.Tensor:
    """Eq. 2 of all frames of a clip, some queries of all heads at a time, pooled in pairs.

    Args:
        queries, keys: ``[N, T, H]``.
    """
    received = torch.zeros(keys.shape[:2], device=keys.device)
    for part in queries.split(block, dim=1):
        weights = (part @ keys.mT * keys.shape[-1] ** -0.5).softmax(dim=-1, dtype=torch.float32)
        received += weights.sum(dim=1)
    return (received.mean(dim=0) / queries.shape[1]).view(-1, 2).mean(dim=1)


def _consolidate(audio, salient, video, video_norms, config: OmniZipConfig):
    windows, slots, width = audio.shape
    anchors = torch.zeros_like(salient)
    wanted = round(config.anchor_ratio * slots)
    if config.merge_size == 0 or wanted == 0:
        return audio, anchors
    others = (~salient).sum(dim=1)
    filled = torch.arange(wanted, device=audio.device) < others[:, None]
    step = (others // wanted).clamp(min=1)
    order = torch.sort((~salient).int(), dim=1, descending=True, stable=True).indices
    place = (torch.arange(wanted, device=audio.device) * step[:, None]).clamp(max=slots - 1)
    anchor = order.gather(1, place)
    anchors.scatter_(1, anchor, filled)
    candidate = ~salient & ~anchors

    norms = audio.norm(dim=-1) + 1e-6
    products = audio @ video.reshape(windows, -1, width).transpose(1, 2)
    relevance = (products / (video_norms.reshape(windows, 1, -1) + 1e-6)).amax(dim=-1) / norms
    features = audio.gather(1, anchor[..., None].expand(-1, -1, width))
    likeness = features @ audio.transpose(1, 2) / norms.gather(1, anchor)[..., None]
    likeness.masked_fill_(~filled[..., None], float("-inf"))
    mine = likeness.argmax(dim=1)[:, None] == torch.arange(wanted, device=audio.device)[:, None]
    ranked = relevance[:, None].masked_fill(~(mine & candidate[:, None]), float("-inf"))
    best = ranked.topk(config.merge_size, dim=-1)
    taken = best.values > float("-inf")
    weights = best.values.masked_fill(~taken, -1e30).softmax(dim=-1).nan_to_num()
    rows = torch.arange(windows, device=audio.device)[:, None, None]
    mean = (weights[..., None] * audio[rows, best.indices]).sum(dim=2)
    new = torch.where(taken.any(dim=-1)[..., None], (features + mean) / 2, features)
    return audio.scatter(1, anchor[..., None].expand(-1, -1, width), new), anchors


def _discards(retention, tokens: int, config: OmniZipConfig):
    """Eq. 5 and the exact budget: one common scale between the bounds, largest remainders."""
    rates = config.rho_max - (config.rho_max - config.rho_min) * retention.double()
    total = round(config.rho_video * tokens * len(rates))
    low, high = -(-config.rho_min * tokens // 1), config.rho_max * tokens // 1
    share = rates * tokens
    scales = torch.cat([low / share, high / share]).sort().values
    sums = (share * scales[:, None]).clamp(low, high).sum(dim=1)
    piece = int((sums <= total).sum()) - 1
    inside = (low / share <= scales[piece]) & (scales[piece] < high / share)
    slope = share[inside].sum()
    scale = scales[piece] + (total - sums[piece]) / slope.clamp(min=1e-30)
    share = (share * scale).clamp(low, high)
    whole = share.floor()
    rest = total - int(whole.sum())
    whole[(share - whole).masked_fill(whole >= high, -1).topk(rest).indices] += 1
    return whole.long()


def _density_peaks(grid, squares, knn: int):
    """Logarithm of the DPC-KNN score of eq. 7-8."""
    apart = torch.baddbmm(squares[:, :, None] + squares[:, None], grid, grid.mT, alpha=-2)
    apart.clamp_(min=0).div_(grid.shape[-1])
    apart.diagonal(dim1=1, dim2=2).fill_(float("inf"))
    density = -apart.topk(knn, dim=-1, largest=False).values.mean(dim=-1)
    apart.diagonal(dim1=1, dim2=2).zero_()
    denser = density[:, None, :] > density[:, :, None]
    delta = apart.masked_fill(~denser, float("inf")).amin(dim=-1)
    delta = torch.where(delta.isinf(), apart.amax(dim=-1), delta)
    return delta.log() / 2 + density


def _novelty(video, squares):
    product = (video[:, 0] * video[:, 1]).sum(dim=-1)
    return -product / (squares[:, 0] * squares[:, 1]).sqrt().clamp(min=1e-12)
