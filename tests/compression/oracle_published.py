"""The authors' rule once more: float64, loops over the flat prompt, no windows and no jax."""

import numpy as np

from tests.compression.oracle import best, unit


def prompt(tokens, by_time=False):
    """The media tokens as they follow each other: of what kind, and where.

    A window's video, then its audio; or ``by_time``: a grid, the audio up to the next, and so on.
    """
    out = []
    for w in range(len(tokens.audio_mask)):
        video = [("video", (w, *map(int, i))) for i in np.argwhere(tokens.video_mask[w])]
        audio = [("audio", (w, int(i))) for i in np.flatnonzero(tokens.audio_mask[w])]
        if by_time:
            per_grid = tokens.audio_mask.shape[1] / tokens.video_mask.shape[1]
            times = [token[1] * per_grid for _, token in video] + [token[1] for _, token in audio]
            order = np.argsort(times, kind="stable")
            out += [(video + audio)[i] for i in order]
        else:
            out += video + audio
    return out


def runs_of(sequence, kind):
    """Runs of one kind: lists of tokens between which nothing else lies."""
    runs, last = [], None
    for index, (this, token) in enumerate(sequence):
        if this != kind:
            continue
        if last != index - 1:
            runs.append([])
        runs[-1].append(token)
        last = index
    return runs


def choose_audio(tokens, heard, config):
    """(salient, anchors, merged rows) over the clip."""
    audio = np.float64(tokens.audio)
    scores = {t: np.float64(tokens.audio_scores[t]) for t in heard}
    salient = best(scores, heard, round((1 - config.rho_audio) * len(heard)))
    others = [t for t in heard if t not in set(salient)]
    count = min(round(config.anchor_ratio * len(heard)), len(others)) if config.merge_size else 0
    if not count:
        return salient, [], {}
    step = max(1, len(others) // count)
    anchors = [others[k * step] for k in range(count)]
    video = [unit(np.float64(v)) for v in tokens.video[tokens.video_mask]]
    belongs, relevance = {a: [] for a in anchors}, {}
    for t in others:
        if t in belongs:
            continue
        near = [unit(audio[t]) @ unit(audio[a]) for a in anchors]
        belongs[anchors[int(np.argmax(near))]].append(t)
        relevance[t] = max(unit(audio[t]) @ v for v in video) if video else max(near)
    merged = {}
    for anchor, members in belongs.items():
        taken = best(relevance, members, config.merge_size)
        if taken:
            weights = np.exp([relevance[t] for t in taken])
            mean = (weights / weights.sum()) @ np.stack([audio[t] for t in taken])
            merged[anchor] = (audio[anchor] + mean) / 2
    return salient, anchors, merged


def rates_of(retention, sizes, total, config):
    """Rates of the guided runs, and ``rho_video`` for the others."""
    guided = len(retention)
    first = [config.rho_max - (config.rho_max - config.rho_min) * s for s in retention]
    rates = list(np.clip(first, config.rho_min, config.rho_max))
    n = np.array(sizes[:guided], float)
    target = config.rho_video * (total - sum(sizes[guided:]))
    if guided > 2 and abs(np.dot(rates, n) - target) > 1e-3:
        ends = int(np.argmin(rates)), int(np.argmax(rates))
        fixed = sum(rates[i] * n[i] for i in ends)
        free = [i for i in range(guided) if i not in ends]
        share = sum(rates[i] * n[i] for i in free)
        scale = (target - fixed) / share
        for i in free:
            rates[i] = np.clip(rates[i] * scale, config.rho_min, config.rho_max)
        missing = (target - np.dot(rates, n)) / sum(n[i] for i in free)
        for i in free:
            rates[i] = np.clip(rates[i] + missing, config.rho_min, config.rho_max)
    return rates + [config.rho_video] * (len(sizes) - guided)


def spatial(features, knn):
    normal = features / np.linalg.norm(features, axis=1, keepdims=True)
    n = len(features)
    distance = 1 - normal @ normal.T
    np.fill_diagonal(distance, np.inf)
    k = min(knn, n - 1)
    density = np.array([np.exp(-np.mean(np.sort(d)[:k])) for d in distance])
    score = np.zeros(n)
    for i in range(n):
        denser = [distance[i, j] for j in range(n) if density[j] > density[i]]
        farthest = max(distance[i, j] for j in range(n) if j != i)
        score[i] = (min(denser) if denser else farthest) * density[i]
    return score


def choose_video(run, rate, tokens, knn):
    """Kept tokens of one run; grids are counted from its start."""
    grids = {}
    for window, grid, place in run:
        grids.setdefault((window, grid), []).append((window, grid, place))
    kept, before = [], []
    for number, grid in enumerate(grids.values()):
        features = np.stack([np.float64(tokens.video[t]) for t in grid])
        if number % 2:
            last = np.stack([np.float64(tokens.video[t]) for t in before])
            product = (features * last).sum(1)
            lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(last, axis=1)
            score = -product / lengths
        else:
            score = spatial(features, knn)
        count = int(len(grid) * (1 - rate))
        kept += [grid[i] for i in best(dict(enumerate(score)), range(len(grid)), count)]
        before = grid
    return kept


def compress(tokens, config, by_time=False):
    sequence = prompt(tokens, by_time)
    audio_runs, video_runs = runs_of(sequence, "audio"), runs_of(sequence, "video")
    heard = [t for run in audio_runs for t in run]
    salient, anchors, merged = choose_audio(tokens, heard, config)
    stays = set(salient) | set(anchors)
    guided = min(len(audio_runs), len(video_runs))
    retention = [np.mean([t in stays for t in run]) for run in audio_runs[:guided]]
    sizes = [len(run) for run in video_runs]
    rates = rates_of(retention, sizes, sum(sizes), config)
    audio_keep, video_keep = np.zeros_like(tokens.audio_mask), np.zeros_like(tokens.video_mask)
    for t in stays:
        audio_keep[t] = True
    for run, rate in zip(video_runs, rates, strict=True):
        for t in choose_video(run, rate, tokens, config.knn):
            video_keep[t] = True
    audio = np.float64(tokens.audio)
    for t, row in merged.items():
        audio[t] = row
    return {
        "audio": audio,
        "audio_keep": audio_keep,
        "video_keep": video_keep,
        "audio_runs": audio_runs,
        "video_runs": video_runs,
        "rates": rates,
    }
