"""The rivals once more, from their sources' formulas: float64, loops, no jax."""

import numpy as np

from tests.compression import loops
from tests.compression.oracle import best, half_even


def apportion(total, sizes):
    """``total`` over groups in proportion to their sizes, by largest remainders."""
    everything = max(sum(sizes), 1)
    share = [total * n // everything for n in sizes]
    rest = {i: total * n % everything for i, n in enumerate(sizes)}
    for i in best(rest, [i for i in rest if share[i] < sizes[i]], total - sum(share)):
        share[i] += 1
    return share


def change(windows):
    """1 - cosine with the grid before; 3 where there is none."""
    scores = np.full(windows.video_mask.shape, 3.0)
    before = None
    for grid in loops.grids_in_order(windows):
        for place in np.flatnonzero(windows.video_mask[grid]):
            if before is not None and windows.video_mask[before][place]:
                a, b = windows.video[grid][place], windows.video[before][place]
                scores[grid][place] = 1 - loops.cosine(a, b)
        before = grid
    return scores


def merge_in_time(sequences, count):
    """DyCoke: sequences of frames, each a list of (token, features, place in the frame)."""
    whole, others = [], []
    for frames in sequences:
        last = (len(frames) - 1) // 4
        for t, frame in enumerate(frames):
            stays = t % 4 == 0 or (t % 4 == 2 and t // 4 == last)
            back = 1 if t % 2 else 2 if t % 4 == 2 else 4
            reference = {p: x for _, x, p in frames[t - back]} if t >= back else {}
            scores = {
                token: 1 - loops.cosine(x, reference[p]) if p in reference else 3.0
                for token, x, p in frame
            }
            (whole if stays else others).append(scores)
    for_whole = min(count, sum(map(len, whole)))
    kept = []
    for frames, total in ((whole, for_whole), (others, count - for_whole)):
        for scores, number in zip(frames, apportion(total, [len(s) for s in frames]), strict=True):
            kept += best(scores, sorted(scores), number)
    return kept


def dycoke(windows, audio, video, size):
    sounds = []
    for w, mask in enumerate(windows.audio.token_mask):
        frames = {}
        for i in np.flatnonzero(mask):
            token = (w, int(i))
            frames.setdefault(i // size, []).append((token, windows.audio.tokens[token], i % size))
        sounds.append(list(frames.values()))
    pictures = []
    for grid in loops.grids_in_order(windows):
        places = np.flatnonzero(windows.video_mask[grid])
        pictures.append([((*grid, int(p)), windows.video[grid][p], p) for p in places])
    return merge_in_time(sounds, audio), merge_in_time([pictures], video)


def visionzip(tokens, received, keys, features, count, contextual):
    """Dominant tokens, contextual ones, and what these become; ``tokens`` in order."""
    merged = min(half_even(contextual, len(tokens)), count)
    dominant = best({t: received[t] for t in tokens}, tokens, count - merged)
    others = [t for t in tokens if t not in set(dominant)]
    step = max(1, len(others) // max(merged, 1))
    targets = others[::step][:merged]
    belongs = {t: [] for t in targets}
    for token in others:
        if token not in belongs and targets:
            near = [loops.cosine(keys[token], keys[t]) for t in targets]
            belongs[targets[int(np.argmax(near))]].append(token)
    grown = {}
    for target, members in belongs.items():
        own = np.float64(features[target])
        mean = np.mean([np.float64(features[t]) for t in members], axis=0) if members else 0
        grown[target] = own + mean
    return dominant, targets, grown


def vidcom2(windows, count):
    """The kept video tokens, and their number in each grid."""
    grids = loops.grids_in_order(windows)
    tokens = {g: np.float64(windows.video[g][windows.video_mask[g]]) for g in grids}
    everything = np.concatenate(list(tokens.values()))
    variance = everything.var(0)
    channels = np.argsort(variance, kind="stable")[: len(variance) // 2]

    def unit(x):
        x = x[:, channels]
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def like(x, centre):
        apart = ((x - centre) ** 2).sum(1)
        return sum(np.exp(-apart / (2 * 2.0**k)) for k in range(-3, 2))

    clip = unit(everything).mean(0)
    of_clip = {g: like(unit(x), clip) for g, x in tokens.items()}
    both = {g: of_clip[g] + like(unit(x), unit(x).mean(0)) for g, x in tokens.items()}
    frame = np.array([-of_clip[g].mean() for g in grids])
    share = np.exp((frame - frame.max()) / 0.01)
    share /= share.sum()
    weights = (1 + share - share.mean()) * [len(tokens[g]) for g in grids]
    sizes = np.array([len(tokens[g]) for g in grids])
    low, high = 0.0, 2 * (sizes / weights).max()
    for _ in range(200):  # no grid gives more than it has
        middle = (low + high) / 2
        if np.minimum(weights * middle, sizes).sum() < count:
            low = middle
        else:
            high = middle
    shares = np.minimum(weights * high, sizes)
    whole = np.floor(shares + 1e-9).astype(int)
    rest = dict(enumerate(np.round((shares - whole) * 1024)))
    for i in best(rest, [i for i in rest if whole[i] < sizes[i]], count - whole.sum()):
        whole[i] += 1
    keep = np.zeros_like(windows.video_mask)
    for grid, number in zip(grids, whole, strict=True):
        places = np.flatnonzero(windows.video_mask[grid])
        for i in best(dict(enumerate(-both[grid])), range(len(places)), number):
            keep[grid][places[i]] = True
    return keep, whole


def spread(features, received, count):
    """SEATS, stage I: indices in the order in which they are chosen."""
    n = len(features)
    if not count:
        return []
    distance = np.array([[1 - loops.cosine(a, b) for b in features] for a in features])
    np.fill_diagonal(distance, 0)
    weighted = distance * np.float64(received)[None, :]
    second = np.sort(weighted, axis=0)[1] if n > 1 else np.zeros(n)
    chosen = [int(np.argmax(second))]
    while len(chosen) < count:
        nearest = weighted[chosen].min(0)
        nearest[chosen] = -np.inf
        chosen.append(int(np.argmax(nearest)))
    return chosen
