"""Section 3.3, audio: attention scores, salient tokens, and consolidation of the others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.compression.counts import as_fraction, round_share
from omnizip_jax.compression.omnizip_video import scan_windows
from omnizip_jax.compression.similarity import cosines, products


def received_attention(
    queries: Float[Array, "Q N H"],
    query_mask: Bool[Array, " Q"],
    keys: Float[Array, "S N H"],
    key_mask: Bool[Array, " S"],
) -> Float[Array, " S"]:
    """Attention that each key receives from all valid queries together (eq. 2).

    Head by head, ``softmax(q k^T / sqrt(H))`` over the valid keys, summed over the valid queries
    and averaged over the N heads; one block of ``Q x S`` logits lives at a time.

    Args:
        queries, keys: unscaled projections of the audio encoder's last layer.
        query_mask, key_mask: frames that exist.

    Returns:
        One float32 value per key; they sum to the number of valid queries.
    """
    dtype = jnp.promote_types(queries.dtype, jnp.float32)
    scale = queries.shape[-1] ** -0.5

    def add_head(total, head):
        query, key = head
        logits = jnp.where(key_mask, products(query, key) * scale, -jnp.inf)
        weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        share = query_mask / jnp.sum(weights, axis=-1)
        return total + jnp.where(key_mask, share @ weights, 0), None

    heads = (jnp.moveaxis(queries, 1, 0), jnp.moveaxis(keys, 1, 0))
    total, _ = jax.lax.scan(add_head, jnp.zeros(keys.shape[0], dtype), heads)
    return total / queries.shape[1]


def attention_scores(
    queries: Float[Array, "W T N H"],
    keys: Float[Array, "W T N H"],
    frame_mask: Bool[Array, "W T"],
    tokens: int,
    block: int | None = None,
) -> Float[Array, "W {tokens}"]:
    """Importance of every audio token of a clip: eq. 2 over all its frames, pooled to tokens.

    The softmax runs over the keys of the whole clip, though the encoder itself attends inside
    windows; the score of a frame is its mean over heads and over all valid queries.

    Args:
        queries, keys: unscaled projections of the encoder's last layer, N heads of size H, for T
            frames in each of W windows; frames fill the front of a window.
        frame_mask: frames that exist.
        tokens: audio tokens in a window.
        block: windows over which a softmax runs; None: the clip.

    Returns:
        Scores of the audio tokens of each window, 0 where there is no token.
    """
    windows, frames = frame_mask.shape
    all_keys, all_mask = keys.reshape(windows * frames, *keys.shape[2:]), frame_mask.reshape(-1)
    blocks = jnp.arange(windows) // (block or windows)

    def add_window(total, query, mask, own):
        seen = all_mask if block is None else all_mask & jnp.repeat(blocks == own, frames)
        return total + received_attention(query, mask, all_keys, seen)

    start = jnp.zeros(windows * frames, jnp.promote_types(queries.dtype, jnp.float32))
    total = scan_windows(add_window, start, queries, frame_mask, blocks)
    score = total / jnp.maximum(jnp.sum(frame_mask), 1)
    return pool_frames(score.reshape(windows, frames), frame_mask, tokens)


def pool_frames(
    scores: Float[Array, "*W T"], frame_mask: Bool[Array, "*W T"], tokens: int
) -> Float[Array, "*W {tokens}"]:
    """Mean over the ``T // tokens`` frames of each token, as the encoder pools its features.

    0 where a frame is missing: frames that do not fill a token have none.
    """
    shape = (*scores.shape[:-1], tokens, scores.shape[-1] // tokens)
    used = slice(shape[-2] * shape[-1])
    whole = frame_mask[..., used].reshape(shape).all(-1)
    return jnp.where(whole, scores[..., used].reshape(shape).mean(-1), 0)


def sample_anchors(
    others: Bool[Array, " N"], count: Int[Array, ""] | int, slots: int
) -> tuple[Int[Array, " C"], Bool[Array, " C"], Bool[Array, " N"]]:
    """Uniform anchors: every ``R // count``-th of R non-salient tokens, from the first.

    Args:
        others: the non-salient tokens.
        count: number of anchors, limited to the number of non-salient tokens.
        slots: static bound C on ``count``.

    Returns:
        Indices of the anchors, which of the slots hold one, and the anchors as a mask of tokens.
    """
    total = jnp.sum(others)
    count = jnp.minimum(count, total)
    step = jnp.maximum(total // jnp.maximum(count, 1), 1)
    in_order = jnp.argsort(~others, stable=True)
    slot = jnp.arange(slots)
    filled = slot < count
    anchor = in_order[jnp.minimum(slot * step, others.size - 1)]
    mask = jnp.zeros_like(others).at[jnp.where(filled, anchor, others.size)].set(True, mode="drop")
    return anchor, filled, mask


def merge_into_anchors(
    audio: Float[Array, "N D"],
    candidates: Bool[Array, " N"],
    relevance: Float[Array, " N"],
    anchor: Int[Array, " C"],
    filled: Bool[Array, " C"],
    merge_size: int,
) -> Float[Array, "N D"]:
    """Merge each anchor with the ``merge_size`` most relevant of its candidates.

    A candidate belongs to the anchor nearest to it (cosine). The anchor becomes the mean of itself
    and the mean of its most relevant candidates, weighted by the softmax of their relevance. All
    merged features are the original ones.

    Args:
        audio: N audio tokens.
        candidates: tokens that are neither salient nor anchors.
        relevance: similarity of each candidate to the video (``cross_modal_similarity``); ``-inf``
            where there is no video; the similarity to the nearest anchor is used instead.
        anchor, filled: slots of anchors, from ``sample_anchors``.
        merge_size: G, at least 1.

    Returns:
        The tokens with the merged anchors.
    """
    features = audio[anchor]
    similarity = jnp.where(filled, cosines(audio, features), -jnp.inf)
    relevance = jnp.where(jnp.isneginf(relevance), similarity.max(-1), relevance)
    belongs = jax.nn.one_hot(similarity.argmax(-1), anchor.size, axis=0, dtype=bool)
    member = belongs & filled[:, None] & candidates

    slots = min(merge_size, candidates.size)
    score, index = jax.lax.top_k(jnp.where(member, relevance, -jnp.inf), slots)
    taken = score > -jnp.inf
    weight = jnp.where(taken, jnp.exp(score), 0)  # of cosines: nothing can overflow
    weight = weight / jnp.maximum(jnp.sum(weight, -1, keepdims=True), 1e-30)
    mean = jnp.einsum(
        "cg,cgd->cd",
        weight,
        audio[index].astype(weight.dtype),
        precision=jax.lax.Precision.HIGHEST,
    )
    merged = ((features + mean) / 2).astype(audio.dtype)
    index = jnp.where(taken.any(-1), anchor, candidates.size)  # out of range: unchanged
    return audio.at[index].set(merged, mode="drop")


def cross_modal_similarity(
    audio: Float[Array, "N D"], video: Float[Array, "V D"], video_mask: Bool[Array, " V"]
) -> Float[Array, " N"]:
    """Eq. 3-4: the highest cosine of each audio token with any valid video token.

    ``-inf`` where there is no video.
    """
    return jnp.max(jnp.where(video_mask, cosines(audio, video), -jnp.inf), axis=-1)


def consolidate_window(
    audio: Float[Array, "A D"],
    audio_mask: Bool[Array, " A"],
    salient: Bool[Array, " A"],
    video: Float[Array, "G P D"],
    video_mask: Bool[Array, "G P"],
    merge_size: int,
    anchor_ratio: float,
) -> tuple[Float[Array, "A D"], Bool[Array, " A"]]:
    """Audio anchor consolidation inside one window (section 3.3, eq. 3-4).

    ``anchor_ratio`` of its audio tokens (half to even) become anchors, limited to the non-salient
    ones; they are kept in addition to the salient tokens. ``merge_size=0``: none.

    Returns:
        The audio with merged anchors, and the mask of the anchors.
    """
    ratio = as_fraction(anchor_ratio)
    slots = round_share(ratio, audio_mask.size)
    if merge_size == 0 or slots == 0:
        return audio, jnp.zeros_like(salient)
    others = audio_mask & ~salient
    count = round_share(ratio, jnp.sum(audio_mask))
    anchor, filled, anchors = sample_anchors(others, count, slots)
    relevance = cross_modal_similarity(
        audio, video.reshape(-1, video.shape[-1]), video_mask.reshape(-1)
    )
    candidates = others & ~anchors
    merged = merge_into_anchors(audio, candidates, relevance, anchor, filled, merge_size)
    return merged, anchors
