"""Reductions inside the decoder against transformers with hooks that prune at the same layer."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import DynamicCache

from omnizip_jax.compression.fastv import AttentionStage
from omnizip_jax.compression.seats import Seats
from omnizip_jax.compression.stages import Stage, Tokens
from omnizip_jax.inference.decode import DecodeState, SamplingArrays, generate_tokens
from omnizip_jax.models.decoder import Decoder
from omnizip_jax.types import TokenKind
from tests.models import hf
from tests.models.hf import to_flax

CONFIG = dataclasses.replace(hf.TEXT_CONFIG, layers=5)
LENGTH, PADDED, ROOM, GREEDY = 50, 64, 16, 6
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
    """transformers' decoder; hooks see the attention of a layer, and prune what enters the next."""

    def __init__(self, model, stages: dict[int, float]):
        self.model, self.stages, self.kept = model, stages, {}
        self.hooks = []
        for number, layer in enumerate(model.layers):
            self.hooks += [
                layer.self_attn.register_forward_hook(self.see),
                layer.register_forward_pre_hook(self.enter(number), with_kwargs=True),
            ]

    def see(self, module, args, out):
        self.attention = out[1][0]

    def enter(self, number):
        def hook(module, args, kwargs):
            hidden = args[0]
            if number == 0:
                self.here = torch.arange(LENGTH)
            if len(kwargs["position_embeddings"][0][0]) == 1 or hidden.shape[1] == 1:
                return args, kwargs | {"attention_mask": None}  # a new token sees all that is there
            if number in self.stages:
                score = self.attention[:, -1].mean(0)
                media = torch.tensor(KIND != TokenKind.TEXT)[self.here]
                count = round(self.stages[number] * int(media.sum()))
                score = torch.where(media, score, -1.0)
                stays = ~media
                stays[score.topk(count).indices] = True
                hidden, self.here = hidden[:, stays], self.here[stays]
                self.kept[number] = self.here
            turned = tuple(x[..., self.here, :] for x in kwargs["position_embeddings"])
            mask = kwargs["attention_mask"][..., self.here, :][..., self.here]
            changed = {"position_embeddings": turned, "attention_mask": mask}
            return (hidden, *args[1:]), kwargs | changed

        return hook

    @torch.no_grad()
    def run(self, embeddings, positions):
        """Logits after the prompt, and greedy tokens."""
        cache, table = DynamicCache(), self.model.embed_tokens.weight
        self.cache = cache  # for hooks: what layers call it differs between versions
        x, place = torch.tensor(embeddings)[None], torch.tensor(positions)[:, None].long()
        end, tokens, first = int(positions.max()) + 1, [], None
        for step in range(GREEDY + 1):
            out = self.model(
                inputs_embeds=x, position_ids=place, past_key_values=cache, use_cache=True
            )
            logits = out.last_hidden_state[0, -1] @ table.T
            first = logits.numpy() if first is None else first
            tokens.append(int(logits.argmax()))
            x, place = table[tokens[-1]][None, None], torch.full((3, 1, 1), end + step)
        for hook in self.hooks:
            hook.remove()
        return first, tokens[:GREEDY]


class Seated(Pruned):
    """The stages of SEATS: the attention that the next layer would have; the past is pruned too."""

    def __init__(self, model, stages, windows):
        super().__init__(model, stages)
        self.windows = windows

    def enter(self, number):
        plain = Pruned.enter(self, -1)

        def hook(module, args, kwargs):
            hidden = args[0]
            if number == 0:
                self.here = torch.arange(LENGTH)
            if number in self.stages and hidden.shape[1] > 1:
                turned = tuple(x[..., self.here, :] for x in kwargs["position_embeddings"])
                normed = module.input_layernorm(hidden)
                mask = torch.full((1, 1, len(self.here), len(self.here)), float("-inf")).triu(1)
                module.self_attn(normed, position_embeddings=turned, attention_mask=mask)
                stays = self.choose(self.attention[:, -1].double().mean(0), self.stages[number])
                for layer in self.cache.layers[:number]:
                    layer.keys, layer.values = layer.keys[:, :, stays], layer.values[:, :, stays]
                args, self.here = (hidden[:, stays], *args[1:]), self.here[stays]
                self.kept[number] = self.here
            return plain(module, args, kwargs)

        return hook

    def choose(self, scores, share):
        kind, window = torch.tensor(KIND)[self.here], torch.tensor(self.windows)[self.here]
        stays = kind == TokenKind.TEXT
        groups = [(kind != TokenKind.TEXT) & (window == w) for w in range(3)]
        weight = torch.softmax(torch.stack([scores[g].mean() for g in groups]) / 0.1, 0)
        for modality in (TokenKind.AUDIO, TokenKind.VIDEO):
            sizes = torch.tensor([int((g & (kind == modality)).sum()) for g in groups])
            total = round(share * int(sizes.sum()))
            there = weight * (sizes > 0)
            shares = total * there / there.sum()
            counts = shares.floor().int()
            rest = (shares - counts).argsort(descending=True)[: total - int(counts.sum())]
            counts[rest] += 1
            assert share == 0 or (counts <= sizes).all()  # no window gives more than it has
            for group, count in zip(groups, counts.tolist(), strict=True):
                own = torch.where(group & (kind == modality), scores, -1.0)
                stays[own.topk(count).indices] = True
        return stays


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


def run(weights, prompt, stages, sizes, windows=None):
    embeddings, positions = prompt
    embeddings = np.pad(embeddings, ((0, PADDED - LENGTH), (0, 0)), constant_values=1e3)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def prefill(weights, embeddings, tokens):
        decoder = Decoder(CONFIG).bind({"params": weights})
        hidden, left, cache, depth = decoder.prefill(embeddings, tokens, stages, sizes, ROOM)
        return decoder.logits(hidden[left.count - 1][None])[0], left, cache, depth

    tokens = tokens_of(positions, windows)
    prefill(weights, embeddings * 0.5, tokens)
    logits, left, cache, depth = prefill(weights, embeddings, tokens)
    wanted = [int(jnp.sum(depth > stage.after)) for stage in stages]
    assert (np.asarray(wanted) <= sizes).all()
    all_the_way = np.asarray(depth) == CONFIG.layers
    assert (np.asarray(tokens.kind)[all_the_way] == np.asarray(left.kind[: left.count])).all()
    end = jnp.int32(positions.max() + 1)
    begin = DecodeState(cache, logits, end, jax.random.key(0), jnp.bool_(False))
    made, _, after = generate_tokens(
        weights,
        jax.tree.map(jnp.copy, begin),
        SamplingArrays.of(0.0, 1.0),
        jnp.int32(GREEDY),
        config=CONFIG,
        steps=GREEDY,
        end_tokens=(),
    )
    return logits, made.tolist(), left, cache, after.cache


@pytest.mark.parametrize(
    "shares",
    [
        {1: 0.5},
        pytest.param({2: 0.5}, marks=pytest.mark.slow),
        pytest.param({4: 0.2}, marks=pytest.mark.slow),
        {2: 0.6, 3: 0.3},
        {3: 0.0},
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
    stays = oracle.kept[max(shares)].numpy()
    assert left.count == len(stays) == text + media
    np.testing.assert_array_equal(left.positions[:, : len(stays)], prompt[1][:, stays])
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert made == greedy
    lengths = [LENGTH, *(len(oracle.kept[n]) for n in shares)]
    assert [int(segment.length) for segment in cache] == lengths
    assert [int(segment.length) for segment in after] == [n + GREEDY for n in lengths]
    assert [len(segment.keys) for segment in cache] == np.diff([0, *shares, CONFIG.layers]).tolist()


def test_seats(model, weights, prompt):
    """From the first stage to greedy tokens that look back at a pruned past."""
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
    oracle = Seated(model, {stage.after: stage.share for stage in stages}, WINDOWS)
    expected, greedy = oracle.run(*prompt)
    logits, made, left, cache, _ = run(weights, prompt, stages, tuple(sizes), WINDOWS)
    assert len(oracle.kept[3]) > text == left.count == len(oracle.kept[4])
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert made == greedy
    assert [int(segment.length) for segment in cache] == [text] * 3


def test_no_stage_is_a_plain_prefill(model, weights, prompt):
    expected, greedy = Pruned(model, {}).run(*prompt)
    logits, made, *_ = run(weights, prompt, (), ())
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert made == greedy


@dataclasses.dataclass(frozen=True)
class Every(Stage):
    """Every other token stays; remembers nothing of its attention but its sum."""

    def bound(self, text, media):
        return (text + media + 1) // 2

    def keep(self, attention, tokens):
        return (jnp.arange(tokens.kind.shape[0]) % 2 == 1) & jnp.all(attention.sum(-1) > 0.999)


def test_the_past_can_be_pruned_too(weights, prompt):
    slots = Every(3).bound(0, LENGTH)
    whole = run(weights, prompt, (Every(1), Every(3)), (25, 13))
    pruned = run(weights, prompt, (Every(1), Every(3, prunes_past=True)), (25, 13))
    assert slots == 25 and whole[0].tolist() == pruned[0].tolist()
    kept = (np.arange(3, LENGTH, 4), slice(1, 24, 2), slice(0, 12))  # in each segment's slots
    for segment, before, own in zip(pruned[3], whole[3], kept, strict=True):
        assert segment.length == 12 and segment.keys.shape[1] == 13 + ROOM
        np.testing.assert_array_equal(segment.keys[:, :12], before.keys[:, own])
        np.testing.assert_array_equal(segment.values[:, :12], before.values[:, own])


def test_attention_of_the_next_layer(model, weights, prompt):
    """What a stage sees ahead is what the layer has when nothing leaves."""
    seen = {}

    @dataclasses.dataclass(frozen=True)
    class Looks(Stage):
        def bound(self, text, media):
            return text + media

        def keep(self, attention, tokens):
            seen[self] = attention
            return jnp.ones(tokens.kind.shape[0], bool)

    embeddings, positions = prompt
    tokens = tokens_of(positions)
    padded = np.pad(embeddings, ((0, PADDED - LENGTH), (0, 0)))
    decoder = Decoder(CONFIG).bind({"params": weights})
    for stage in (Looks(2, ahead=True), Looks(3)):
        decoder.prefill(padded, tokens, (stage,), (PADDED,), ROOM)
    with torch.no_grad():
        expected = model(
            inputs_embeds=torch.tensor(embeddings)[None],
            position_ids=torch.tensor(positions)[:, None].long(),
            output_attentions=True,
        ).attentions[2][0, :, -1]
    for attention in seen.values():  # both ask the layer with index 2
        np.testing.assert_allclose(attention[:, :LENGTH], expected, atol=1e-5)
        assert not np.any(attention[:, LENGTH:])
    assert len(seen) == 2


@pytest.mark.parametrize("after", [(0,), (5,), (3, 2), (2, 2)])
def test_stages_out_of_order(weights, prompt, after):
    stages = tuple(AttentionStage(n, media=0.5) for n in after)
    decoder = Decoder(CONFIG).bind({"params": weights})
    with pytest.raises(ValueError, match="between 1 and 4"):
        decoder.prefill(prompt[0], tokens_of(prompt[1]), stages, (PADDED,) * len(after), ROOM)
