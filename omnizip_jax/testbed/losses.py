"""What the small model is trained to do: name what is in each token, and answer questions.

Encoders and decoder are the library's own modules; the linear heads that ask what is in a token are
thrown away after training.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from omnizip_jax.models import rope
from omnizip_jax.models.kernels import Kernels
from omnizip_jax.models.qwen2_5_omni.audio import AudioEncoder
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.vision import VisionEncoder
from omnizip_jax.models.text import Decoder, KVCache, Layer
from omnizip_jax.testbed.batches import GRID, TARGETS, DecoderBatch, EncoderBatch
from omnizip_jax.testbed.model import HIDDEN

AUXILIARY_LAYERS = (1, 2)  # heads behind later layers did not help
NOTHING_WEIGHT = 0.1  # of tokens in which there is nothing, in the losses of the heads

Metrics = dict[str, jax.Array]


@functools.partial(jax.jit, static_argnums=(0, 1))
def init_model(config: ModelConfig, seed: int) -> dict[str, Any]:
    """Random parameters of the model and of the auxiliary heads."""
    keys = iter(jax.random.split(jax.random.key(seed), 16))
    audio, vision = config.audio, config.vision
    patches = jnp.zeros((vision.merge**2, vision.patch_values), jnp.uint8)

    def heads() -> dict[str, Any]:
        return {
            name: {
                "kernel": jax.random.normal(next(keys), (HIDDEN, classes)) / HIDDEN**0.5,
                "bias": jnp.zeros(classes),
            }
            for name, classes in TARGETS.items()
        }

    mel = jnp.zeros((audio.mel_bins, 2 * audio.n_window))
    return {
        "audio": AudioEncoder(audio).init(next(keys), mel, 0)["params"],
        "vision": VisionEncoder(vision).init(next(keys), patches, jnp.ones(2, int))["params"],
        "text": Decoder(config.text).init(
            next(keys), jnp.zeros(1, jnp.int32), method=Decoder.init_all
        )["params"],
        "heads": {"encoders": heads(), **{f"layer{i}": heads() for i in AUXILIARY_LAYERS}},
    }


def encoder_loss(
    params: Any, batch: EncoderBatch, config: ModelConfig
) -> tuple[Float[Array, ""], Metrics]:
    """Cross entropy of linear heads that name what is in each token, on the encoders' outputs."""
    vision, audio = VisionEncoder(config.vision), AudioEncoder(config.audio)
    size = jnp.array([GRID, GRID])
    video = jax.vmap(lambda x: vision.bind({"params": params["vision"]})(x, size))(batch.patches)
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
    """Cross entropy of a linear head, and its accuracy where there is something."""
    logits = features @ head["kernel"] + head["bias"]
    something = labels > 0
    weight = jnp.where(something, 1.0, NOTHING_WEIGHT)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = (jnp.argmax(logits, -1) == labels) * something
    return jnp.sum(loss * weight) / jnp.sum(weight), right.sum() / jnp.maximum(something.sum(), 1)


def hidden_states(
    weights: Any,
    embeddings: Float[Array, "T D"],
    positions: Int[Array, "3 T"],
    config: ModelConfig,
) -> list[Float[Array, "T D"]]:
    """The decoder's hidden states after every layer, of one sequence; the last one normalised."""
    text = config.text
    angle = rope.angles(positions, text)
    cache = KVCache.empty(dataclasses.replace(text, layers=1), embeddings.shape[0])
    x, states = embeddings, []
    for index in range(text.layers):
        layer = Layer(text, jnp.float32, Kernels(), fresh=True)
        own = jax.tree.map(lambda leaf, i=index: leaf[i], weights["layers"])
        x, _ = layer.apply({"params": own}, (x, cache), jnp.int32(0), angle)  # pyright: ignore
        states.append(x)
    norm = Decoder(text).bind({"params": weights}).norm
    return [*states, norm(x)]


def read_sequence(
    params: Any, batch: DecoderBatch, config: ModelConfig
) -> tuple[Float[Array, "B S V"], list[Float[Array, "B T D"]]]:
    """Logits after every token of the text, and the hidden states of the whole sequence."""
    decoder = Decoder(config.text).bind({"params": params["text"]})
    prefix = decoder.embed(batch.prefix)
    prefix = jnp.broadcast_to(prefix, (len(batch.text), *prefix.shape))
    sequence = jnp.concatenate([prefix, batch.media, decoder.embed(batch.text)], axis=1)
    run = functools.partial(hidden_states, params["text"], config=config)
    states = jax.vmap(run)(sequence, batch.positions)
    return decoder.logits(states[-1][:, -batch.text.shape[1] :]), states


def decoder_loss(
    params: Any, batch: DecoderBatch, config: ModelConfig, auxiliary: float
) -> tuple[Float[Array, ""], Metrics]:
    """Cross entropy of the answers and of what the auxiliary heads find in the first layers."""
    logits, states = read_sequence(params, batch, config)
    logits = logits[:, :-1]
    target, learned = batch.text[:, 1:], batch.answer[:, :-1] > 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    loss = jnp.sum(losses * learned) / learned.sum()
    # The first of the two tokens with a round's number is the answer, the second ends the turn.
    begins = learned & (batch.answer[:, :-1] != jnp.pad(batch.answer, ((0, 0), (1, 0)))[:, :-2])
    right = jnp.argmax(logits, -1) == target
    metrics = {"answers": jnp.sum(right * begins) / begins.sum()}
    if auxiliary:
        media = slice(len(batch.prefix), len(batch.prefix) + batch.media.shape[1])
        for layer in AUXILIARY_LAYERS:
            for name, labels in batch.labels.items():
                head = params["heads"][f"layer{layer}"][name]
                extra, found = label_loss(head, states[layer - 1][:, media], labels)
                loss += auxiliary / len(TARGETS) * extra
                metrics[f"{name}{layer}"] = found
    return loss, metrics
