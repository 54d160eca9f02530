"""A whole clip and a question to an answer: encode, compress, pack, prefill, decode."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int
from tqdm import tqdm

from omnizip_jax import prompt as prompts
from omnizip_jax.compression import (
    CausalPlan,
    CompressedClip,
    attention_scores,
    compress_causal,
    compress_clip,
    init_plan,
    kept_bound,
    pack,
)
from omnizip_jax.config import OmniZipConfig, WindowSpec
from omnizip_jax.decode import Generation, Sampling, complete
from omnizip_jax.media import Clip, load_clip
from omnizip_jax.models.kernels import Kernels
from omnizip_jax.models.qwen2_5_omni import positions as tmrope
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.encoders import bound_decoder, check_spec, encode_windows
from omnizip_jax.models.text import KVCache
from omnizip_jax.types import EncodedWindow, Window, WindowTokens

if TYPE_CHECKING:
    from omnizip_jax.models.params import Params

ENCODE_BLOCK = 8  # windows per encoder dispatch
TEXT_BLOCK = 32  # the question is padded to a multiple of this


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """How many tokens the clip had, how many the decoder read, how many it wrote."""

    audio: int
    audio_kept: int
    video: int
    video_kept: int
    text: int
    generated: int

    @property
    def media(self) -> int:
        return self.audio + self.video

    @property
    def kept(self) -> int:
        return self.audio_kept + self.video_kept

    @property
    def retained(self) -> float:
        """Share of the media tokens that the decoder read."""
        return self.kept / self.media if self.media else 1.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer: prints as its text, and carries what led to it.

    Attributes:
        text: the answer.
        token_ids: its tokens, the end token included if it was made.
        counts: tokens by modality, before and after compression.
        compression: the trace, leading axis = windows: kept masks, retention, rates. None for a
            question without media.
        clip: the clip as it was read.
        seconds: wall time of "media", "encoders", "prefill" (compression included), "generation".
    """

    text: str
    token_ids: tuple[int, ...]
    counts: TokenCounts
    compression: CompressedClip | None
    clip: Clip | None
    seconds: dict[str, float]

    def __str__(self) -> str:
        return self.text


class PromptArrays(struct.PyTreeNode):
    """A prompt on the device; the suffix is padded, so that questions share a program."""

    prefix: Int[Array, "P"]
    prefix_positions: Int[Array, "P"]
    suffix: Int[Array, "S"]
    suffix_positions: Int[Array, "S"]
    suffix_mask: Bool[Array, "S"]

    @classmethod
    def from_prompt(cls, prompt: prompts.Prompt) -> PromptArrays:
        length = len(prompt.suffix)
        padding = (0, -length % TEXT_BLOCK)
        return cls(
            prefix=jnp.asarray(prompt.prefix),
            prefix_positions=jnp.asarray(prompt.prefix_positions),
            suffix=jnp.asarray(np.pad(prompt.suffix, padding)),
            suffix_positions=jnp.asarray(np.pad(prompt.suffix_positions, padding)),
            suffix_mask=jnp.arange(length + padding[1]) < length,
        )


def generate(
    params: Params,
    video: Any,
    question: str,
    *,
    compression: OmniZipConfig | None = OmniZipConfig(),  # noqa: B008 (frozen)
    max_new_tokens: int = 256,
    system: str = prompts.DEFAULT_SYSTEM,
    use_audio: bool = True,
    use_video: bool = True,
    max_frames: int | None = None,
    spec: WindowSpec = WindowSpec(),  # noqa: B008 (frozen)
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
    progress: bool = False,
) -> Answer:
    """Answer a question about a video with sound.

    Args:
        params: from ``omnizip_jax.load``.
        video: a path, a URL, or ``(frames uint8 [T, H, W, 3], fps, waveform float32 [S], sample
            rate)`` with None for a missing waveform. None asks the language model alone.
        question: the user's turn.
        compression: the rule of the paper with its settings; None keeps all tokens.
        max_new_tokens: where to stop if the model does not.
        system: the system prompt.
        use_audio, use_video: set one to False to leave that modality out.
        max_frames: cap on the frames of a long clip; sampled uniformly. None: 2 a second.
        spec: the shape of a window; more ``grid_slots`` keep larger pictures.
        temperature: 0 is greedy.
        top_p: nucleus sampling: keep the likeliest tokens that hold this mass.
        seed: of the sampling.
        on_text: called with every new piece of text as it is made.
        progress: show progress bars for long clips.

    Raises:
        ValueError: an unreadable video, an empty question, a setting out of range, or a prompt
            that is longer than the model's positions.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    sampling = Sampling.of(temperature, top_p)
    config, seconds = params.config, {}
    check_spec(spec, config)
    clip = encoded = None
    with _timed(seconds, "media"):
        if video is not None:
            clip = load_clip(
                video,
                spec,
                patch=config.vision.patch,
                merge=config.vision.merge,
                temporal_patch=config.vision.temporal_patch,
                mel_bins=config.audio.mel_bins,
                max_frames=max_frames,
                use_audio=use_audio,
                use_video=use_video,
                progress=progress,
            )
        prompt = prompts.build(
            params.tokenizer,
            config,
            question,
            audio=clip is not None and clip.has_audio,
            video=clip is not None and clip.has_video,
            system=system,
        )
    check_positions(clip, prompt, max_new_tokens, config)
    with _timed(seconds, "encoders"):
        if clip is not None:
            encoded = encode_clip(params.weights, clip.windows, config, progress)
            jax.block_until_ready(encoded)
    with _timed(seconds, "prefill"):
        generation, trace, counts = prefill(
            params, clip, encoded, prompt, compression, max_new_tokens, seed
        )
        jax.block_until_ready(generation)
    with _timed(seconds, "generation"):
        text, ids, _ = complete(params, generation, sampling, max_new_tokens, on_text)
    return Answer(
        text=text,
        token_ids=tuple(ids),
        counts=dataclasses.replace(counts, generated=len(ids)),
        compression=trace,
        clip=clip,
        seconds=seconds,
    )


def check_positions(
    clip: Clip | None, prompt: prompts.Prompt, max_new_tokens: int, config: ModelConfig
) -> None:
    """Raise ``ValueError`` if the answer would end beyond the positions that the model knows."""
    windows = 0 if clip is None else len(clip.windows.mel_length)
    media = windows * config.window_positions
    end = len(prompt.prefix) + media + len(prompt.suffix) + max_new_tokens
    if end > config.text.max_positions:
        raise ValueError(
            f"the clip ({media} positions, {config.positions_per_second} a second), the question "
            f"and the answer need {end} positions; the model has {config.text.max_positions}: "
            "shorten the clip, or stream it"
        )


def encode_clip(
    weights: Any, windows: Window, config: ModelConfig, progress: bool = False
) -> EncodedWindow:
    """Encode a clip in blocks of a fixed number of windows, one program for any length.

    The result is padded with empty windows up to the clip's length bucket.
    """
    total, kernels = padded_length(len(windows.mel_length)), Kernels.of(weights)
    windows = pad_windows(windows, total)

    def encode(start: int) -> EncodedWindow:
        block = jax.tree.map(lambda x: x[start : start + ENCODE_BLOCK], windows)
        return encode_windows(weights, block, config=config, kernels=kernels)

    starts = tqdm(range(0, total, ENCODE_BLOCK), "encoding", unit="block", disable=not progress)
    blocks = []
    for start in starts:
        blocks.append(encode(start))
        if progress:  # dispatch runs ahead of the device, a bar should not
            jax.block_until_ready(blocks[-1])
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *blocks)


def padded_length(windows: int) -> int:
    """Windows that a clip is padded to: its length bucket, in whole blocks of the encoders."""
    total = bucket(windows, smallest=ENCODE_BLOCK)
    return total + -total % ENCODE_BLOCK


def prefill_sizes(
    audio_counts: Int[np.ndarray, " W"],
    video_counts: Int[np.ndarray, " W"],
    text: int,
    compression: OmniZipConfig | None,
    room: int,
) -> dict[str, int]:
    """The static sizes of ``first_token``: tokens that the decoder reads, slots of its cache.

    Args:
        audio_counts, video_counts: valid tokens of each window.
        text: tokens around the clip.
        room: slots for the answer.
    """
    if compression is None:
        bound = int((audio_counts + video_counts).sum())
    else:
        bound = kept_bound(audio_counts, video_counts, compression)
    capacity = bucket(bound + text)
    return {"capacity": capacity, "slots": bucket(capacity + room)}


def prefill(
    params: Params,
    clip: Clip | None,
    encoded: EncodedWindow | None,
    prompt: prompts.Prompt,
    compression: OmniZipConfig | None,
    max_new_tokens: int,
    seed: int,
) -> tuple[Generation, CompressedClip | None, TokenCounts]:
    """Choose static sizes for a clip on the host, then run ``first_token``."""
    arrays = PromptArrays.from_prompt(prompt)
    layout, last = None, 0
    audio = video = np.zeros(0, int)
    if clip is not None and encoded is not None:
        audio, video = token_counts(clip.windows)
        last = len(audio) - 1
        layout = clip.windows.replace(patches=None, mel=None)
        layout = pad_windows(layout, encoded.video_mask.shape[0])
    text = len(prompt.prefix) + len(prompt.suffix)
    sizes = prefill_sizes(audio, video, text, compression, max_new_tokens)
    generation, trace, count = first_token(
        params.weights,
        encoded,
        layout,
        arrays,
        jnp.int32(last),
        jax.random.key(seed),
        config=params.config,
        compression=compression,
        kernels=Kernels.of(params.weights),
        **sizes,
    )
    if int(count) > sizes["capacity"]:
        raise AssertionError(
            f"kept {int(count)} tokens, more than the bound of {sizes['capacity']}"
        )
    if trace is not None:
        trace = jax.tree.map(lambda x: np.asarray(x)[: last + 1], trace.replace(audio=None))
    return (
        generation,
        trace,
        TokenCounts(
            audio=int(audio.sum()),
            audio_kept=int(trace.audio_keep.sum()) if trace else 0,
            video=int(video.sum()),
            video_kept=int(trace.video_keep.sum()) if trace else 0,
            text=text,
            generated=0,
        ),
    )


@functools.partial(
    jax.jit, static_argnames=("config", "compression", "capacity", "slots", "kernels")
)
def first_token(
    weights: Any,
    encoded: EncodedWindow | None,
    layout: Window | None,
    prompt: PromptArrays,
    last: Int[Array, ""],
    key: Array,
    *,
    config: ModelConfig,
    compression: OmniZipConfig | None,
    capacity: int,
    slots: int,
    kernels: Kernels = Kernels(),  # noqa: B008 (frozen)
) -> tuple[Generation, CompressedClip | None, Int[Array, ""]]:
    """One program from the encoders' outputs to the logits of the first token.

    Plans and compresses (paper section 3), packs what stays to the front, and prefills: packed
    tokens, not masks, are what makes the prefill cheap. Tokens that stay keep their positions.

    Args:
        encoded: the clip's windows, padded with empty ones; None for text alone.
        layout: the windows' geometry (``Window`` without patches and mel).
        last: the last window of the clip.
        capacity: static bound on the tokens that the decoder reads.
        slots: static size of the cache.

    Returns:
        The generation to go on with, the compression trace, and the number of tokens read.
    """
    decoder = bound_decoder(weights, config, kernels)
    start = prompt.prefix.shape[0] and prompt.prefix_positions[-1] + 1
    embeddings = [decoder.embed(prompt.prefix)]
    positions = [jnp.broadcast_to(prompt.prefix_positions, (3, prompt.prefix.shape[0]))]
    keep = [jnp.ones(prompt.prefix.shape[0], bool)]
    clip, after = None, jnp.int32(0)
    if encoded is not None and layout is not None:
        clip = compress(encoded, compression)
        embeddings.append(interleave(encoded.video, clip.audio).astype(embeddings[0].dtype))
        positions.append(clip_positions(layout, encoded, start, config))
        keep.append(interleave(clip.video_keep, clip.audio_keep))
        after = tmrope.position_after(
            jax.tree.map(lambda x: x[last], layout),
            encoded.audio.token_mask[last],
            start + last * config.window_positions,
            start,
        )
    embeddings.append(decoder.embed(prompt.suffix))
    positions.append(jnp.broadcast_to(after + prompt.suffix_positions, (3, len(prompt.suffix))))
    keep.append(prompt.suffix_mask)
    packed, packed_positions, count = pack(
        jnp.concatenate(embeddings),
        jnp.concatenate(positions, axis=1),
        jnp.concatenate(keep),
        capacity,
    )
    cache = KVCache.empty(config.text, slots, packed.dtype)
    hidden, cache = decoder(packed, packed_positions, cache, count, fresh=True)
    logits = decoder.logits(hidden[count - 1][None])[0]
    position = after + jnp.max(jnp.where(prompt.suffix_mask, prompt.suffix_positions, 0)) + 1
    return Generation(cache, logits, position, key, jnp.bool_(False)), clip, count


def compress(encoded: EncodedWindow, compression: OmniZipConfig | None) -> CompressedClip:
    """The clip's compression (paper section 3.3 and 3.4); everything kept where it is None."""
    audio = encoded.audio
    if compression is None:
        return jax.vmap(keep_all)(encoded)
    if compression.causal:
        frames, heads, size = audio.keys.shape[1:]
        plan = init_plan(compression, frames, heads, size, audio.keys.dtype)

        def step(plan: CausalPlan, window: EncodedWindow):
            return compress_next(plan, window, compression)

        return jax.lax.scan(step, plan, encoded)[1]
    scores = attention_scores(audio.queries, audio.keys, audio.frame_mask)
    tokens = WindowTokens(audio.tokens, scores, audio.token_mask, encoded.video, encoded.video_mask)
    return compress_clip(tokens, compression)


def compress_next(
    plan: CausalPlan, window: EncodedWindow, compression: OmniZipConfig | None
) -> tuple[CausalPlan, CompressedClip]:
    """The next window of a stream; the trace is without the axis of windows."""
    if compression is None:
        return plan.replace(window=plan.window + 1), keep_all(window)
    audio = window.audio
    return compress_causal(
        plan,
        audio.queries,
        audio.keys,
        audio.frame_mask,
        audio.tokens,
        audio.token_mask,
        window.video,
        window.video_mask,
        compression,
    )


def keep_all(window: EncodedWindow) -> CompressedClip:
    """The trace of one window that is not compressed."""
    audio = window.audio
    return CompressedClip(
        audio=audio.tokens,
        audio_keep=audio.token_mask,
        audio_salient=audio.token_mask,
        audio_order=jnp.zeros(audio.token_mask.shape, jnp.int32),
        video_keep=window.video_mask,
        video_order=jnp.zeros(window.video_mask.shape, jnp.int32),
        audio_retention=jnp.any(audio.token_mask).astype(jnp.float32),
        video_rate=jnp.float32(0),
    )


def interleave(video: Array, audio: Array) -> Array:
    """Lay out a clip: window after window, in each its video grids, then its audio."""
    windows, grids, cells = video.shape[:3]
    video = video.reshape(windows, grids * cells, *video.shape[3:])
    both = jnp.concatenate([video, audio], axis=1)
    return both.reshape(-1, *both.shape[2:])


def clip_positions(
    layout: Window, encoded: EncodedWindow, start: Array | int, config: ModelConfig
) -> Int[Array, "3 slots"]:
    """TMRoPE positions of every slot of the clip."""
    windows, _, cells = encoded.video_mask.shape
    sounds = encoded.audio.token_mask.shape[1]

    def of_window(window: Window, index: Array) -> Array:
        time = start + index * config.window_positions
        return tmrope.window_positions(window, time, start, cells, sounds)

    positions = jax.vmap(of_window)(layout, jnp.arange(windows))
    return positions.transpose(1, 0, 2).reshape(3, -1)


def token_counts(windows: Window) -> tuple[Int[np.ndarray, "W"], Int[np.ndarray, "W"]]:
    """Audio and video tokens of every window, on the host."""
    audio = (np.asarray(windows.mel_length) + 1) // 4
    video = np.asarray(windows.grid_mask).sum(1) * np.asarray(windows.grid_size).prod(1)
    return audio, video


def pad_windows(windows: Window, total: int) -> Window:
    """Append empty windows up to ``total``."""

    def pad(x: Array) -> np.ndarray:
        return np.pad(x, [(0, total - len(x))] + [(0, 0)] * (np.ndim(x) - 1))

    return jax.tree.map(pad, windows)


def bucket(size: int, smallest: int = 64) -> int:
    """Round up to one of eight sizes an octave, so that few programs serve all lengths."""
    if size <= smallest:
        return smallest
    step = 1 << max((size - 1).bit_length() - 4, 0)
    return -(-size // step) * step


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began
