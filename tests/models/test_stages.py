"""Pruning inside the decoder against transformers with hooks that prune at the same layer."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import DynamicCache

from omnizip_jax.compression.decoder_stages import Stage, Tokens
from omnizip_jax.compression.fastv import AttentionStage
from omnizip_jax.compression.seats import Seats
from omnizip_jax.models.decoder import Decoder
from omnizip_jax.types import TokenKind
from tests.models import hf
from tests.models.hf import to_flax

CONFIG = dataclasses.replace(hf.TEXT_CONFIG, layers=5)
LENGTH, PADDED, FREE, GREEDY = 50, 64, 16, 6
KIND = np.repeat(
    [TokenKind.TEXT, TokenKind.VIDEO, TokenKind.AUDIO, TokenKind.VIDEO, TokenKind.TEXT],
    [6, 20, 9, 8, 7],
)


@pytest.fixture(scope="module")
def model():
    return hf.oracle(CONFIG)


@pytest.fixture(scope="module")
def weights(model):
    return to_flax(model.state_dict())


@pytest.fixture(scope="module")
def prompt():
    return hf.random_block(LENGTH, CONFIG)


class Pruned:
    """transformers' decoder with hooks that record attention and prune the next layer's input."""

    def __init__(self, model, stages: dict[int, float]):
        self.model, self.stages, self.kept = model, stages, {}
        self.hooks = []
        for number, layer in enumerate(model.layers):
            self.hooks += [
                layer.self_attn.register_forward_hook(self.record),
                layer.register_forward_pre_hook(self.enter(number), with_kwargs=True),
            ]

    def record(self, module, args, out):
        self.attention = out[1][0]

    def enter(self, number):
        def hook(module, args, kwargs):
            hidden = args[0]
            if number == 0:
                self.remaining = torch.arange(LENGTH)
            if len(kwargs["position_embeddings"][0][0]) == 1 or hidden.shape[1] == 1:
                return args, kwargs | {"attention_mask": None}  # a new token attends to all
            if number in self.stages:
                score = self.attention[:, -1].mean(0)
                media = torch.tensor(KIND != TokenKind.TEXT)[self.remaining]
                count = round(self.stages[number] * int(media.sum()))
                score = torch.where(media, score, -1.0)
                keep = ~media
                keep[score.topk(count).indices] = True
                hidden, self.remaining = hidden[:, keep], self.remaining[keep]
                self.kept[number] = self.remaining
            rotary = tuple(x[..., self.remaining, :] for x in kwargs["position_embeddings"])
            mask = kwargs["attention_mask"][..., self.remaining, :][..., self.remaining]
            changed = {"position_embeddings": rotary, "attention_mask": mask}
            return (hidden, *args[1:]), kwargs | changed

        return hook

    @torch.no_grad()
    def run(self, embeddings, positions):
        """Logits after the prompt, and greedy tokens."""
        cache, table = DynamicCache(), self.model.embed_tokens.weight
        self.cache = cache  # for hooks: its keyword differs between versions
        x, position = torch.tensor(embeddings)[None], torch.tensor(positions)[:, None].long()
        end, tokens, first = int(positions.max()) + 1, [], None
        for step in range(GREEDY + 1):
            out = self.model(
                inputs_embeds=x, position_ids=position, past_key_values=cache, use_cache=True
            )
            logits = out.last_hidden_state[0, -1] @ table.T
            first = logits.numpy() if first is None else first
            tokens.append(int(logits.argmax()))
            x, position = table[tokens[-1]][None, None], torch.full((3, 1, 1), end + step)
        for hook in self.hooks:
            hook.remove()
        return first, tokens[:GREEDY]


class SeatsPruned(Pruned):
    """The stages of SEATS: attention of the next layer; the cache is pruned too."""

    def __init__(self, model, stages, windows):
        super().__init__(model, stages)
        self.windows = windows

    def enter(self, number):
        plain = Pruned.enter(self, -1)

        def hook(module, args, kwargs):
            hidden = args[0]
            if number == 0:
                self.remaining = torch.arange(LENGTH)
            if number in self.stages and hidden.shape[1] > 1:
                rotary = tuple(x[..., self.remaining, :] for x in kwargs["position_embeddings"])
                normed = module.input_layernorm(hidden)
                mask = torch.full(
                    (1, 1, len(self.remaining), len(self.remaining)), float("-inf")
                ).triu(1)
                module.self_attn(normed, position_embeddings=rotary, attention_mask=mask)
                keep = self.choose(self.attention[:, -1].double().mean(0), self.stages[number])
                for layer in self.cache.layers[:number]:
                    layer.keys, layer.values = layer.keys[:, :, keep], layer.values[:, :, keep]
                args, self.remaining = (hidden[:, keep], *args[1:]), self.remaining[keep]
                self.kept[number] = self.remaining
            return plain(module, args, kwargs)

        return hook

    def choose(self, scores, share):
        kind, window = (
            torch.tensor(KIND)[self.remaining],
            torch.tensor(self.windows)[self.remaining],
        )
        keep = kind == TokenKind.TEXT
        groups = [(kind != TokenKind.TEXT) & (window == w) for w in range(3)]
        weight = torch.softmax(torch.stack([scores[g].mean() for g in groups]) / 0.1, 0)
        for modality in (TokenKind.AUDIO, TokenKind.VIDEO):
            sizes = torch.tensor([int((g & (kind == modality)).sum()) for g in groups])
            total = round(share * int(sizes.sum()))
            present = weight * (sizes > 0)
            shares = total * present / present.sum()
            counts = shares.floor().int()
            rest = (shares - counts).argsort(descending=True)[: total - int(counts.sum())]
            counts[rest] += 1
            assert share == 0 or (counts <= sizes).all()  # no window keeps more than it has
            for group, count in zip(groups, counts.tolist(), strict=True):
                own = torch.where(group & (kind == modality), scores, -1.0)
                keep[own.topk(count).indices] = True
        return keep


WINDOWS = np.repeat([0, 0, 1, 0, 1, 2, 0], [6, 10, 10, 5, 4, 8, 7])


def tokens_of(positions, windows=None):
    padding = (0, PADDED - LENGTH)
    return Tokens(
        jnp.asarray(np.pad(positions, ((0, 0), padding))),
        jnp.asarray(np.pad(KIND, padding, constant_values=TokenKind.VIDEO)),
        jnp.asarray(np.pad(np.zeros(LENGTH, int) if windows is None else windows, padding)),
        jnp.int32(LENGTH),
        1 if windows is None else 3,
    )


def padded(embeddings):
    return np.pad(embeddings, ((0, PADDED - LENGTH), (0, 0)), constant_values=1e3)


def run(weights, prompt, stages, sizes, windows=None):
    """Logits after the prompt, and greedy tokens, in one program that is traced once."""
    embeddings, positions = prompt
    end = jnp.int32(positions.max() + 1)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def generate(weights, embeddings, tokens):
        decoder = Decoder(CONFIG).bind({"params": weights})
        hidden, left, cache, depth = decoder.prefill(embeddings, tokens, stages, sizes, FREE)

        def step(carry, index):
            cache, logits = carry
            token = jnp.argmax(logits)
            positions = jnp.broadcast_to(end + index, (3, 1))
            decoder = Decoder(CONFIG).bind({"params": weights})
            hidden, cache = decoder(decoder.embed(token[None]), positions, cache)
            return (cache, decoder.logits(hidden)[0]), token

        logits = decoder.logits(hidden[left.count - 1][None])[0]
        (after, _), made = jax.lax.scan(step, (cache, logits), jnp.arange(GREEDY))
        return logits, made, left, cache, after, depth

    tokens = tokens_of(positions, windows)
    generate(weights, padded(embeddings) * 0.5, tokens)
    logits, made, left, cache, after, depth = generate(weights, padded(embeddings), tokens)
    needed = [int(jnp.sum(depth > stage.after)) for stage in stages]
    assert (np.asarray(needed) <= sizes).all()
    to_the_end = np.asarray(depth) == CONFIG.layers
    assert (np.asarray(tokens.kind)[to_the_end] == np.asarray(left.kind[: left.count])).all()
    return logits, made.tolist(), left, cache, after


@pytest.mark.parametrize(
    "shares",
    [
        pytest.param({1: 0.5}, marks=pytest.mark.slow),
        pytest.param({2: 0.5}, marks=pytest.mark.slow),
        pytest.param({4: 0.2}, marks=pytest.mark.slow),
        {2: 0.6, 3: 0.3},
        pytest.param({3: 0.0}, marks=pytest.mark.slow),
    ],
)
def test_fastv(model, weights, prompt, shares):
    stages = tuple(AttentionStage(after, media=share) for after, share in shares.items())
    text, media, sizes = (
        int((KIND == TokenKind.TEXT).sum()),
        int((KIND != TokenKind.TEXT).sum()),
        [],
    )
    for stage in stages:
        sizes.append(stage.bound(text, media) + 3)  # a bucket's slack
        media = stage.bound(0, media)
    oracle = Pruned(model, shares)
    expected, greedy = oracle.run(*prompt)
    logits, made, left, cache, after = run(weights, prompt, stages, tuple(sizes))
    keep = oracle.kept[max(shares)].numpy()
    assert left.count == len(keep) == text + media
    np.testing.assert_array_equal(left.positions[:, : len(keep)], prompt[1][:, keep])
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert made == greedy
    lengths = [LENGTH, *(len(oracle.kept[n]) for n in shares)]
    assert [int(segment.length) for segment in cache] == lengths
    assert [int(segment.length) for segment in after] == [n + GREEDY for n in lengths]
    assert [len(segment.keys) for segment in cache] == np.diff([0, *shares, CONFIG.layers]).tolist()


def test_seats(model, weights, prompt):
    """From the first stage to greedy tokens that attend to a pruned cache."""
    stages = Seats(keep=0.5).stages(CONFIG.layers)
    assert [stage.after for stage in stages] == [3, 4] and stages[-1].share == 0
    text, media, sizes = (
        int((KIND == TokenKind.TEXT).sum()),
        int((KIND != TokenKind.TEXT).sum()),
        [],
    )
    for stage in stages:
        sizes.append(stage.bound(text, media))
        media = sizes[-1] - text
    oracle = SeatsPruned(model, {stage.after: stage.share for stage in stages}, WINDOWS)
    expected, greedy = oracle.run(*prompt)
    logits, made, left, cache, _ = run(weights, prompt, stages, tuple(sizes), WINDOWS)
    assert len(oracle.kept[3]) > text == left.count == len(oracle.kept[4])
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert made == greedy
    assert [int(segment.length) for segment in cache] == [text] * 3


@pytest.mark.slow  # plain prefills have tests of their own
def test_no_stage_is_a_plain_prefill(model, weights, prompt):
    expected, greedy = Pruned(model, {}).run(*prompt)
    logits, made, *_ = run(weights, prompt, (), ())
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert made == greedy


@dataclasses.dataclass(frozen=True)
class EveryOther(Stage):
    """Keep every other token; check that attention weights add up to 1."""

    def bound(self, text, media):
        return (text + media + 1) // 2

    def keep(self, attention, tokens):
        return (jnp.arange(tokens.kind.shape[0]) % 2 == 1) & jnp.all(attention.sum(-1) > 0.999)


def test_the_cache_can_be_pruned_too(weights, prompt):
    embeddings, positions = prompt

    @jax.jit
    def prefill(weights, embeddings, tokens):
        results = []
        for last in (EveryOther(3), EveryOther(3, prunes_past=True)):
            decoder = Decoder(CONFIG).bind({"params": weights})
            results.append(
                decoder.prefill(embeddings, tokens, (EveryOther(1), last), (25, 13), FREE)
            )
        return results

    whole, pruned = prefill(weights, padded(embeddings), tokens_of(positions))
    np.testing.assert_array_equal(whole[0], pruned[0])
    assert EveryOther(3).bound(0, LENGTH) == 25
    kept = (np.arange(3, LENGTH, 4), slice(1, 24, 2), slice(0, 12))  # slots of each segment
    for segment, before, own in zip(pruned[2], whole[2], kept, strict=True):
        assert segment.length == 12 and segment.keys.shape[1] == 13 + FREE
        np.testing.assert_array_equal(segment.keys[:, :12], before.keys[:, own])
        np.testing.assert_array_equal(segment.values[:, :12], before.values[:, own])


def test_attention_of_the_next_layer(model, weights, prompt):
    """With ``ahead``, a stage observes the attention that the next layer has without pruning."""

    @dataclasses.dataclass(frozen=True)
    class Observe(Stage):
        def bound(self, text, media):
            return text + media

        def keep(self, attention, tokens):
            observed.append(attention)
            return jnp.ones(tokens.kind.shape[0], bool)

    @jax.jit
    def prefill(weights, embeddings, tokens):
        for stage in (Observe(2, ahead=True), Observe(3)):
            decoder = Decoder(CONFIG).bind({"params": weights})
            decoder.prefill(embeddings, tokens, (stage,), (PADDED,), FREE)
        return observed

    observed: list[jax.Array] = []
    embeddings, positions = prompt
    with torch.no_grad():
        expected = model(
            inputs_embeds=torch.tensor(embeddings)[None],
            position_ids=torch.tensor(positions)[:, None].long(),
            output_attentions=True,
        ).attentions[2][0, :, -1]
    results = prefill(weights, padded(embeddings), tokens_of(positions))
    assert len(results) == 2
    for attention in results:  # both observe the layer with index 2
        np.testing.assert_allclose(attention[:, :LENGTH], expected, atol=1e-5)
        assert not np.any(attention[:, LENGTH:])


@pytest.mark.parametrize("after", [(0,), (5,), (3, 2), (2, 2)])
def test_stages_out_of_order(weights, prompt, after):
    stages = tuple(AttentionStage(n, media=0.5) for n in after)
    decoder = Decoder(CONFIG).bind({"params": weights})
    with pytest.raises(ValueError, match="between 1 and 4"):
        decoder.prefill(prompt[0], tokens_of(prompt[1]), stages, (PADDED,) * len(after), FREE)
