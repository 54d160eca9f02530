"""The paper's rule once more: float64, loops, no jax; one function per section of the paper."""

import math
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import numpy as np


def half_even(share, count):
    return int((Decimal(repr(share)) * int(count)).quantize(Decimal(1), ROUND_HALF_EVEN))


def best(score, indices, count):
    """The indices with the highest scores; ties go to the lower index."""
    return sorted(sorted(indices, key=lambda i: (-score[i], i))[:count])


def unit(x):
    return x / (np.linalg.norm(x) + 1e-6)


def salient_tokens(scores, mask, rho_audio):
    tokens = [tuple(i) for i in np.argwhere(mask)]
    keep = 1 - Decimal(repr(rho_audio))
    count = int((keep * len(tokens)).quantize(Decimal(1), ROUND_HALF_EVEN))
    salient = np.zeros(mask.shape, bool)
    for i in best({t: scores[t] for t in tokens}, tokens, count):
        salient[i] = True
    return salient


def consolidate(audio, mask, salient, video, config):
    """One window: (audio with merged anchors, anchors); ``video`` holds its valid tokens."""
    audio, anchors = audio.copy(), np.zeros(mask.shape, bool)
    others = np.flatnonzero(mask & ~salient)
    count = min(half_even(config.anchor_ratio, mask.sum()), len(others))
    if config.merge_size == 0 or count == 0:
        return audio, anchors
    step = max(1, len(others) // count)
    chosen = [others[k * step] for k in range(count)]
    anchors[chosen] = True
    belongs, relevance = {c: [] for c in chosen}, {}
    original = audio.copy()
    for i in others:
        if anchors[i]:
            continue
        to_anchor = [unit(original[i]) @ unit(original[c]) for c in chosen]
        belongs[chosen[int(np.argmax(to_anchor))]].append(i)
        to_video = [unit(original[i]) @ unit(v) for v in video]
        relevance[i] = max(to_video) if len(video) else max(to_anchor)
    for c, members in belongs.items():
        taken = best(relevance, members, config.merge_size)
        if taken:
            weights = np.exp([relevance[i] for i in taken])
            mean = (weights / weights.sum()) @ original[taken]
            audio[c] = (original[c] + mean) / 2
    return audio, anchors


def fill(weights, lower, upper, total):
    """clip(weight * s, lower, upper) with the sum ``total``, by bisection."""
    low, high = 0.0, max([u / w for u, w in zip(upper, weights, strict=True)] + [1.0]) * 2
    for _ in range(100):
        middle = (low + high) / 2
        if np.clip(weights * middle, lower, upper).sum() < total:
            low = middle
        else:
            high = middle
    return np.clip(weights * high, lower, upper)


def salient_of_share(scores, mask, count, anchors):
    """The salient ones of ``count`` kept audio tokens; the lowest of a window are anchors."""
    candidates = []
    for w in range(len(mask)):
        tokens = [(w, i) for i in np.flatnonzero(mask[w])]
        tokens.sort(key=lambda t: (-scores[t], t))
        candidates += tokens[: len(tokens) - anchors[w]]
    salient = np.zeros(mask.shape, bool)
    for t in best({t: scores[t] for t in candidates}, candidates, count - sum(anchors)):
        salient[t] = True
    return salient


def discards(retention, audio_counts, video_counts, config, total=None):
    rate = config.rho_video
    if total is None:
        total = half_even(rate, video_counts.sum())
    else:
        rate = total / max(video_counts.sum(), 1)
    low, high = Decimal(repr(config.rho_min)), Decimal(repr(config.rho_max))
    lower = np.array([math.ceil(low * int(n)) for n in video_counts])
    upper = np.array([math.floor(high * int(n)) for n in video_counts])
    lower, upper = np.minimum(lower, upper), np.maximum(lower, upper)
    if lower.sum() > total:
        lower = np.array([math.floor(low * int(n)) for n in video_counts])
    if upper.sum() < total:
        upper = np.array([math.ceil(high * int(n)) for n in video_counts])
    # Bounds that cannot meet the total move to the middle between the mean rate and 0, or 1.
    everything = int(video_counts.sum())
    if lower.sum() > total:
        lower = np.array([int(n) * total // (2 * everything) for n in video_counts])
    if upper.sum() < total:
        widest = Fraction(total + everything, 2 * everything)
        upper = np.array([math.ceil(int(n) * widest) for n in video_counts])
    guided = [i for i, n in enumerate(audio_counts) if n > 0]
    plain = [i for i, n in enumerate(audio_counts) if n == 0]
    plain_share = np.clip(rate * video_counts[plain].sum(), lower[plain].sum(), upper[plain].sum())
    guided_share = np.clip(total - plain_share, lower[guided].sum(), upper[guided].sum())
    shares = np.zeros(len(video_counts))
    size = np.maximum(video_counts, 1)
    rates = config.rho_max - (config.rho_max - config.rho_min) * retention
    weights = np.maximum(rates, 1e-6) * size
    shares[guided] = fill(weights[guided], lower[guided], upper[guided], guided_share)
    shares[plain] = fill(size[plain] * 1.0, lower[plain], upper[plain], total - guided_share)
    # An integer share may come out of the bisection a hair below itself.
    whole = np.floor(shares + 1e-9).astype(int)
    rest = np.round((shares - whole) * 1024)
    for i in best(rest, [i for i in range(len(rest)) if whole[i] < upper[i]], total - whole.sum()):
        whole[i] += 1
    return whole


def dpc_knn(tokens, knn):
    """log(delta * rho) of eq. 7-8, distances by subtraction."""
    n, width = tokens.shape
    distance = np.array([[np.linalg.norm(a - b) for b in tokens] for a in tokens]) / width**0.5
    k = min(knn, n - 1)
    density = np.zeros(n)
    for i in range(n):
        near = sorted(np.delete(distance[i], i))[:k]
        density[i] = -np.mean(np.square(near)) if k else 0.0
    score = np.zeros(n)
    for i in range(n):
        denser = [distance[i, j] for j in range(n) if density[j] > density[i]]
        delta = min(denser) if denser else distance[i].max()
        score[i] = (math.log(delta) if delta > 0 else -np.inf) + density[i]
    return score


def istc(video, mask, kept, knn):
    keep = np.zeros(mask.shape, bool)
    total, seen, before = mask.sum(), 0, 0
    for g in range(len(video)):
        valid = np.flatnonzero(mask[g])
        if not len(valid):
            continue
        seen += len(valid)
        after = -(-kept * seen // total)
        if g % 2 == 0:
            score = dict(zip(valid, dpc_knn(video[g][valid], knn), strict=True))
        else:
            score = {}
            for p in valid:
                a, b = video[g][p], video[g - 1][p]
                score[p] = -(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))
                if not mask[g - 1][p]:
                    score[p] = 1.0
        keep[g][best(score, list(valid), after - before)] = True
        before = after
    return keep


def compress(tokens, config):
    audio, video = np.float64(tokens.audio), np.float64(tokens.video)
    scores, total = np.float64(tokens.audio_scores), None
    if config.keep is None:
        salient = salient_tokens(scores, tokens.audio_mask, config.rho_audio)
    else:
        heard, seen = int(tokens.audio_mask.sum()), int(tokens.video_mask.sum())
        share = config.anchor_ratio if config.merge_size else 0.0
        anchors = [half_even(share, n) for n in tokens.audio_mask.sum(1)]
        kept = half_even(config.keep, heard + seen)
        rho_audio = 1 - (kept - sum(anchors) + 0.3 * seen) / max(heard + seen, 1)
        of_audio = sum(anchors) + round(round((1 - rho_audio) * heard * 1024) / 1024)
        of_audio = min(max(of_audio, sum(anchors), kept - seen), min(kept, heard))
        salient = salient_of_share(scores, tokens.audio_mask, of_audio, anchors)
        total = seen - (kept - of_audio)
    merged, anchors = np.zeros_like(audio), np.zeros_like(salient)
    for w in range(len(audio)):
        merged[w], anchors[w] = consolidate(
            audio[w], tokens.audio_mask[w], salient[w], video[w][tokens.video_mask[w]], config
        )
    audio_counts = tokens.audio_mask.sum(1)
    video_counts = tokens.video_mask.sum((1, 2))
    retention = (salient | anchors).sum(1) / np.maximum(audio_counts, 1)
    discarded = discards(retention, audio_counts, video_counts, config, total)
    video_keep = np.stack(
        [
            istc(video[w], tokens.video_mask[w], video_counts[w] - discarded[w], config.knn)
            for w in range(len(video))
        ]
    )
    return {
        "audio": merged,
        "audio_keep": salient | anchors,
        "audio_salient": salient,
        "video_keep": video_keep,
        "audio_retention": retention,
        "video_rate": discarded / np.maximum(video_counts, 1),
    }
