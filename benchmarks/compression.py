"""Suite ``compression``: both rules against PyTorch versions, and their memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import flops
from benchmarks.harness import Call, Row, peak_memory, program_bytes
from benchmarks.machine import synchronised, torch_device
from benchmarks.run_state import Bench
from omnizip_jax.compression import OmniZipConfig, PublishedOmniZip
from omnizip_jax.compression.omnizip_audio import attention_scores
from omnizip_jax.compression.omnizip_steps import OmniZipSettings, compress_clip
from omnizip_jax.evaluation.hardware import cores
from omnizip_jax.types import Selection, WindowTokens
from omnizip_jax.window_spec import WindowSpec

LONG_CLIP = 384  # windows: 12.8 minutes, the authors' limit of 768 frames
PAPER, PUBLISHED = OmniZipConfig.paper(), OmniZipConfig.published()
NAMES: dict[OmniZipSettings, str] = {PAPER: "paper", PUBLISHED: "published"}


def run(bench: Bench) -> Iterator[Row]:
    count, width = bench.compression_windows, bench.preset.compression_width
    tokens = random_tokens(count, width, bench.dtype)
    size = sum(x.nbytes for x in jax.tree.leaves(tokens))
    clip = f"{count} windows, D={width}"

    candidates = PUBLISHED.rho_audio - PUBLISHED.anchor_ratio
    published = flops.published_flops(count, width, candidates)
    yield _row(bench, "published_vs_loop", tokens, PUBLISHED, published, size, clip)
    paper = flops.compression_flops(count, width)
    yield _row(bench, "paper_vs_batched", tokens, PAPER, paper, size, clip)

    yield _scores(bench, count)

    shapes = jax.eval_shape(lambda: random_tokens(LONG_CLIP, width, bench.dtype))
    bytes_in = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    for name, config in (("temporaries", PAPER), ("temporaries_published", PUBLISHED)):
        used, _ = program_bytes(program(config, shapes).lower(shapes).compile())
        note = f"{LONG_CLIP} windows, {NAMES[config]} rule: {used / 2**20:.0f} MiB"
        yield bench.figure(f"compression.{name}", used / bytes_in, "share", note=note)


def _row(bench: Bench, name, tokens, config, operations, size, clip) -> Row:
    bench.say(f"compression: {NAMES[config]} rule on {clip}")
    ours = program(config, tokens)
    peers = {}
    if bench.has_torch:
        make = loop_call if config == PUBLISHED else batched_call
        peers = thread_choices(make(tokens, config))
    with peak_memory() as peak:
        jax.block_until_ready(ours(tokens))
        note = f"{clip}; {peak()}, clip {size / 2**20:.0f} MiB"
    timing, *others = bench.alternate(lambda: jax.block_until_ready(ours(tokens)), *peers.values())
    best = min(zip(others, peers, strict=True), key=lambda pair: pair[0].median, default=())
    floor = bench.machine.floor(operations, size)
    return bench.timed(f"compression.{name}", timing, *best, floor=floor, note=note)


def _scores(bench: Bench, windows: int) -> Row:
    """Eq. 2 over a whole clip, the first step of both rules."""
    audio = bench.config.audio
    shape = (windows, audio.n_window, audio.heads, audio.head_dim)
    queries, keys = (jax.random.normal(jax.random.key(i), shape, bench.dtype) for i in range(2))
    mask = jnp.ones(shape[:2], bool)
    ours = jax.jit(functools.partial(attention_scores, tokens=shape[1] // 2))
    peers = {}
    if bench.has_torch:
        pair = [to_torch(x).flatten(0, 1).transpose(0, 1) for x in (queries, keys)]
        from benchmarks.peers import omnizip_paper_torch as paper

        peers = thread_choices(lambda: synchronised(lambda: paper.scores(pair[0], pair[1])))
    timing, *others = bench.alternate(
        lambda: jax.block_until_ready(ours(queries, keys, mask)), *peers.values()
    )
    best = min(zip(others, peers, strict=True), key=lambda pair: pair[0].median, default=())
    frames = windows * audio.n_window
    floor = bench.machine.floor(2.0 * audio.hidden * frames**2, queries.nbytes + keys.nbytes)
    note = f"eq. 2 over {frames} frames with {audio.heads} heads"
    return bench.timed("compression.scores", timing, *best, floor=floor, note=note)


def program(config: OmniZipSettings, tokens: WindowTokens) -> Callable[[WindowTokens], Selection]:
    """The compression of clips with as many tokens, jitted."""
    budget = config.plan(*(_counts(mask.shape) for mask in (tokens.audio_mask, tokens.video_mask)))
    return jax.jit(lambda tokens: compress_clip(tokens, budget, config))


def _counts(shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape[0], math.prod(shape[1:]))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def random_tokens(windows: int, width: int, dtype=jnp.float32, grid: int = 144) -> WindowTokens:
    """A clip whose audio and video change gradually, without ties."""
    spec = WindowSpec()
    keys = jax.random.split(jax.random.key(0), 5)
    normal = functools.partial(jax.random.normal, dtype=dtype)
    scene = normal(keys[0], (windows, 1, grid, width))
    loudness = jax.random.uniform(keys[3], (windows, 1), minval=0.5, maxval=2.0)
    return WindowTokens(
        audio=normal(keys[1], (windows, spec.audio_slots, width)),
        audio_scores=loudness * jax.random.uniform(keys[4], (windows, spec.audio_slots)),
        audio_mask=jnp.ones((windows, spec.audio_slots), bool),
        video=scene + 0.7 * normal(keys[2], (windows, spec.grids, grid, width)),
        video_mask=jnp.ones((windows, spec.grids, grid), bool),
    )


def loop_call(tokens: WindowTokens, config: PublishedOmniZip) -> Call:
    """The published rule's steps in PyTorch on the same clip, as one flat prompt."""
    import torch

    from benchmarks.peers import omnizip_official_torch as published

    windows, _, grid, width = tokens.video.shape
    audio_id, video_id = 1, 2
    video = to_torch(tokens.video).reshape(windows, -1, width)
    embeddings = torch.cat([video, to_torch(tokens.audio)], dim=1)
    ids = torch.full(embeddings.shape[:2], audio_id)
    ids[:, : video.shape[1]] = video_id
    scores = to_torch(tokens.audio_scores).flatten()
    prompt, kinds = embeddings.flatten(0, 1), ids.flatten().to(embeddings.device)
    return lambda: synchronised(
        lambda: published.compress(prompt, kinds, scores, grid, audio_id, video_id, config)
    )


def batched_call(tokens: WindowTokens, config: OmniZipConfig) -> Call:
    """The paper's rule in batched PyTorch on the same clip."""
    from benchmarks.peers import omnizip_paper_torch as paper

    audio, scores, video = map(to_torch, (tokens.audio, tokens.audio_scores, tokens.video))
    return lambda: synchronised(lambda: paper.compress(audio, scores, video, config))


def to_torch(x: jax.Array):
    """Copy an array to PyTorch, on the peers' device."""
    import torch

    array = np.array(x.astype(jnp.float32))
    kind = torch.bfloat16 if x.dtype == jnp.bfloat16 else torch.float32
    return torch.from_numpy(array).to(torch_device(), kind)


def thread_choices(call: Call) -> dict[str, Call]:
    """The call with one thread and with all: either may be faster."""
    import torch

    def with_threads(count: int) -> Call:
        def run():
            torch.set_num_threads(count)
            return call()

        return run

    counts = dict.fromkeys((1, cores()))
    return {f"PyTorch, {n} thread{'s' * (n > 1)}": with_threads(n) for n in counts}
