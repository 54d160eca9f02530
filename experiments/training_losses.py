"""Losses of the small model: classification of tokens by linear heads, and answers to questions.

Encoders and decoder are the library's modules; the heads are discarded after training.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.clip_inputs import GRID
from experiments.small_model_export import HIDDEN
from experiments.training_batches import CLASSES, DecoderBatch
from experiments.training_clips import TARGETS, EncoderBatch
from omnizip_jax.models import attention, rope
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.config import TextConfig
from omnizip_jax.models.decoder import MLP, Decoder
from omnizip_jax.models.qwen2_5_omni.audio import AudioEncoder
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.vision import VisionEncoder

# Targets of the auxiliary heads after each layer. Colour, shape and sound after later layers gained
# nothing.
AUXILIARY = {
    1: ("colour", "shape", "sound"),
    2: ("colour", "shape", "sound", "elapsed"),
    3: ("before", "number", "time", "different"),
    4: ("number", "time", "different"),
}
# The attention of one head in these layers is trained on the evidence of a question. The sound of a
# colour was not learned in thousands of steps without this loss, and in two hundred with it.
EVIDENCE_HEAD, EVIDENCE_LAYERS, EVIDENCE_WEIGHT = 2, (4, 5), 0.5
QUERY_BLOCK = 512  # queries whose scores are in memory together
EMPTY_WEIGHT = 0.1  # of tokens without a label in the losses of the heads

Metrics = dict[str, jax.Array]


class DialogueOutputs(NamedTuple):
    """Outputs of the decoder for dialogues about clips.

    Attributes:
        logits: after every token of the dialogues.
        states: hidden states of the media after every layer.
        evidence_attention: attention of every head and layer to the evidence, a share.
    """

    logits: Float[Array, "B Q S V"]
    states: list[Float[Array, "B M D"]]
    evidence_attention: Float[Array, "B Q S N L"]


@functools.partial(jax.jit, static_argnums=(0, 1))
def init_model(config: ModelConfig, seed: int) -> dict[str, Any]:
    """Random parameters of the model and of the auxiliary heads."""
    keys = iter(jax.random.split(jax.random.key(seed), 32))
    audio, vision = config.audio, config.vision
    patches = jnp.zeros((vision.merge**2, vision.patch_values), jnp.uint8)

    def heads(names: Iterable[str]) -> dict[str, Any]:
        return {
            name: {
                "kernel": jax.random.normal(next(keys), (HIDDEN, CLASSES[name])) / HIDDEN**0.5,
                "bias": jnp.zeros(CLASSES[name]),
            }
            for name in names
        }

    mel = jnp.zeros((audio.mel_bins, 2 * audio.n_window))
    return {
        "audio": AudioEncoder(audio).init(next(keys), mel, 0)["params"],
        "vision": VisionEncoder(vision).init(next(keys), patches, jnp.ones(2, int))["params"],
        "text": Decoder(config.text).init(
            next(keys), jnp.zeros(1, jnp.int32), method=Decoder.init_all
        )["params"],
        "heads": {
            "encoders": heads(TARGETS),
            **{f"layer{i}": heads(names) for i, names in AUXILIARY.items()},
        },
    }


def encoder_loss(
    params: Any, batch: EncoderBatch, config: ModelConfig
) -> tuple[Float[Array, ""], Metrics]:
    """Cross entropy of linear heads that classify the encoders' tokens."""
    vision, audio = VisionEncoder(config.vision), AudioEncoder(config.audio)
    size = jnp.array([GRID, GRID])
    video = jax.vmap(lambda x: vision.bind({"params": params["vision"]})(x, size)[0])(batch.patches)
    sound = jax.vmap(lambda x: audio.bind({"params": params["audio"]})(x, 200).tokens)(batch.mel)
    heads = params["heads"]["encoders"]
    losses, metrics = [], {}
    for name, features in (("colour", video), ("shape", video), ("sound", sound)):
        loss, right = label_loss(heads[name], features, getattr(batch, name))
        losses.append(loss)
        metrics[name] = right
    return sum(losses, jnp.float32(0)), metrics


def label_loss(
    head: Any, features: Float[Array, "*T D"], labels: Int[Array, "*T"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross entropy of a linear head, and its accuracy on labelled tokens."""
    logits = features @ head["kernel"] + head["bias"]
    labelled = labels > 0
    weight = jnp.where(labelled, 1.0, EMPTY_WEIGHT)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = (jnp.argmax(logits, -1) == labels) * labelled
    return jnp.sum(loss * weight) / jnp.sum(weight), right.sum() / jnp.maximum(labelled.sum(), 1)


def decode_dialogues(params: Any, batch: DecoderBatch, config: ModelConfig) -> DialogueOutputs:
    """Decode every dialogue of a batch as if it alone followed its clip.

    The hidden states of a clip are computed once for all its dialogues.
    """
    text, weights = config.text, params["text"]
    decoder = Decoder(text).bind({"params": weights})
    prefix = decoder.embed(batch.prefix)
    offsets = jnp.maximum(jnp.arange(batch.text.shape[-1]) - 1, 0)  # end markers share a position

    def of_clip(media, count, positions, next_position, tokens, evidence):
        clip = jnp.concatenate([prefix, media])
        dialogues = decoder.embed(tokens)
        angles = (
            rope.angles(positions, text),
            rope.angles(jnp.broadcast_to(next_position + offsets, (3, offsets.shape[0])), text),
        )
        states, attention_to_evidence = [], []
        for index in range(text.layers):
            own = jax.tree.map(lambda leaf, i=index: leaf[i], weights["layers"])
            clip, dialogues, weight = _layer(
                own, clip, dialogues, angles, len(prefix) + count, text
            )
            states.append(clip[len(prefix) :])
            weight = weight[..., len(prefix) :]
            attention_to_evidence.append(
                jnp.einsum("nqst,qt->qsn", weight, evidence.astype(weight.dtype))
            )
        logits = decoder.logits(decoder.norm(dialogues))
        return DialogueOutputs(logits, states, jnp.stack(attention_to_evidence, axis=-1))

    return jax.vmap(of_clip)(
        batch.media, batch.count, batch.positions, batch.next_position, batch.text, batch.evidence
    )


def _layer(own, clip, dialogues, angles, count, config: TextConfig):
    """One decoder layer: the clip attends to itself, each dialogue to the clip and to itself."""

    def norm(name: str, x: Array) -> Any:
        return nn.RMSNorm(epsilon=config.rms_eps).apply({"params": own[name]}, x)

    def linear(name: str, x: Array) -> Array:
        part = own["self_attn"][name]
        return x @ part["weight"].T + part.get("bias", 0.0)

    def project(x: Array, angle: Array) -> tuple[Array, Array, Array]:
        x = norm("input_layernorm", x)
        q, k, v = (
            linear(name, x).reshape(x.shape[0], -1, config.head_dim)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        return rope.rotate(q, angle), rope.rotate(k, angle), v

    def add(x: Array, attended: Array) -> Any:
        x = x + linear("o_proj", attended.reshape(x.shape))
        mlp: Any = MLP(config, jnp.float32, Backend.CPU)
        return x + mlp.apply({"params": own["mlp"]}, norm("post_attention_layernorm", x))

    clip_q, clip_k, clip_v = project(clip, angles[0])
    q, k, v = jax.vmap(lambda x: project(x, angles[1]))(dialogues)
    attended, weight = _attend_clip_and_self(q, k, v, clip_k, clip_v, count)
    rows = dialogues.reshape(-1, dialogues.shape[-1])
    clip = add(clip, _attend_causal(clip_q, clip_k, clip_v))
    return clip, add(rows, attended).reshape(dialogues.shape), weight


def _attend_causal(
    q: Float[Array, "T N H"], k: Float[Array, "T K H"], v: Float[Array, "T K H"]
) -> Float[Array, "T N H"]:
    """Causal attention in blocks of queries; the backward pass recomputes the scores."""
    out = []
    for start in range(0, q.shape[0], QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, q.shape[0])
        mask = attention.causal_mask(stop - start, jnp.int32(start), stop)
        out.append(jax.checkpoint(attention.attend)(q[start:stop], k[:stop], v[:stop], mask))
    return jnp.concatenate(out)


def _attend_clip_and_self(q, k, v, clip_k, clip_v, count):
    """Attention of dialogues to the ``count`` tokens of the clip and causally to themselves.

    Returns the attended values [Q, S, N, H] and the weights of the clip's keys [N, Q, S, T].
    """
    groups = q.shape[2] // k.shape[2]
    k, v, clip_k, clip_v = (jnp.repeat(x, groups, axis=-2) for x in (k, v, clip_k, clip_v))
    size, slots = q.shape[1], clip_k.shape[0]
    state = jnp.einsum("qsnh,tnh->nqst", q, clip_k)
    state = jnp.where(jnp.arange(slots) < count, state, attention.MASKED_SCORE)
    own = jnp.einsum("qsnh,qunh->nqsu", q, k)
    own = jnp.where(jnp.tri(size, dtype=bool), own, attention.MASKED_SCORE)
    weight = jax.nn.softmax(jnp.concatenate([state, own], -1) * q.shape[-1] ** -0.5)
    to_clip = jnp.einsum("nqst,tnh->qsnh", weight[..., :slots], clip_v)
    return to_clip + jnp.einsum("nqsu,qunh->qsnh", weight[..., slots:], v), weight[..., :slots]


def decoder_loss(
    params: Any, batch: DecoderBatch, config: ModelConfig, auxiliary: Float[Array, ""]
) -> tuple[Float[Array, ""], Metrics]:
    """Cross entropy of the answers plus two auxiliary losses.

    Auxiliary heads classify the hidden states of the media, and one attention head of some layers
    is trained to attend to the evidence of the question.

    Args:
        auxiliary: weight of the heads' loss.
    """
    outputs = decode_dialogues(params, batch, config)
    logits = outputs.logits[:, :, :-1]
    target, is_target = batch.text[:, :, 1:], batch.answer[:, :, :-1] > 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    loss = jnp.sum(losses * is_target) / is_target.sum()
    right, begins = answer_tokens(logits, batch)
    metrics = {"answers": jnp.sum(right * begins) / begins.sum()}
    supervised = begins & jnp.any(batch.evidence, -1)[..., None]
    count = jnp.maximum(supervised.sum(), 1)
    layers = jnp.array(EVIDENCE_LAYERS) - 1
    attended = outputs.evidence_attention[:, :, :-1, EVIDENCE_HEAD, layers]
    loss -= EVIDENCE_WEIGHT * jnp.sum(jnp.log(attended + 1e-6).mean(-1) * supervised) / count
    metrics["evidence"] = jnp.sum(attended.mean(-1) * supervised) / count
    for layer, names in AUXILIARY.items():
        for name in names:
            head, labels = params["heads"][f"layer{layer}"][name], batch.labels[name]
            extra, accuracy = label_loss(head, outputs.states[layer - 1], labels)
            loss += auxiliary / len(TARGETS) * extra
            metrics[f"{name}{layer}"] = accuracy
    return loss, metrics


def answer_tokens(
    logits: Float[Array, "B Q S V"], batch: DecoderBatch
) -> tuple[Bool[Array, "B Q S"], Bool[Array, "B Q S"]]:
    """Whether each next token is right, and whether it is an answer.

    The first of the two tokens with a round's number is the answer, the second ends the turn.
    """
    answer = batch.answer[:, :, :-1]
    before = jnp.pad(answer, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    right = jnp.argmax(logits, -1) == batch.text[:, :, 1:]
    return right, (answer > 0) & (answer != before)
