"""Models whose routers and indexers meet equal scores choose the same in every kind of pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from tests.exact import assert_equal, differs
from tests.models import randomised, tokens_of
from tests.test_properties import kinds, specs
from tests.thread_ranks import ThreadRanks
from zoo.blocks.routers import GroupedTopK, Router
from zoo.core.cache import Cache
from zoo.core.collectives import Group
from zoo.core.forward_context import recorded_routing
from zoo.core.ops import indexing
from zoo.core.ops.indexing import top_k_set
from zoo.model.module import Model
from zoo.model.parallel import divide
from zoo.sharding import Rank

LENGTH, EXPERTS, DIM = 131, 8, 16
CHUNKS = [50, 1, 64, 3, 13]


def indexed(name: str, layers: slice, kind: type[zoo.Spec], **fields: int) -> zoo.Decoder:
    """Layers of a tiny model with an indexer of few heads, among whose scores many are ReLU's zero."""
    spec = zoo.spec(name, tiny=True)
    return zoo.swap(replace(spec, layers=spec.layers[layers]), kind, lambda indexer: replace(indexer, **fields))


INDEXED = {
    "tokens": indexed("deepseek-v3.2", slice(2, 3), zoo.Indexer, heads=3, k=37),
    "entries": indexed("deepseek-v4", slice(2, 3), zoo.EntryIndexer, heads=1, k=5),
    "a shared choice": indexed("glm5.2-744b", slice(2, 4), zoo.Indexer, heads=2, k=37),
}
ROUTERS: list[Router] = [
    zoo.SoftmaxTopK(3),
    zoo.SoftmaxTopK(3, renormalise=False, bias=True),
    zoo.NormedSoftmaxTopK(3, zoo.RMSNorm(1e-5)),
    zoo.InputScaledTopK(3),
    zoo.GroupedSigmoidTopK(k=3, groups=4, keep=2, scale=2.5),
    zoo.GroupedSoftmaxTopK(k=3, groups=4, keep=2, scale=2.5),
    zoo.SqrtSoftplusTopK(3, scale=1.5),
]


def in_passes(model: Model, tokens: Tensor, sizes: list[int], static: bool = False) -> Tensor:
    specs, weight = [layer.cache_spec() for layer in model.spec.layers], model.embed.weight
    cache = Cache(specs, len(tokens), LENGTH + 5, weight.dtype, weight.device, static)
    return torch.cat([model(part, cache) for part in tokens.split(sizes, dim=1)], dim=1)


@contextmanager
def counted_ties() -> Iterator[list[int]]:
    """For each block of scores, how many rows have equal ones of which some are chosen and others not."""
    counts: list[int] = []

    def count(scores: Tensor, k: int) -> Tensor:
        chosen = top_k_set(scores, k)
        last = scores.gather(-1, chosen).amin(-1, keepdim=True)
        counts.append(int((((scores >= last).sum(-1) > k) & last.squeeze(-1).isfinite()).sum()))
        return chosen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexing, "top_k_set", count)
        yield counts


@torch.no_grad()
@pytest.mark.parametrize("case", INDEXED)
def test_an_indexer_of_few_heads_chooses_the_same_in_every_pass(case: str) -> None:
    model, tokens = randomised(INDEXED[case], dtype=torch.float64), tokens_of(INDEXED[case], 1, LENGTH)
    with counted_ties() as counts:
        expected = model(tokens)
    assert sum(counts) >= 5
    for sizes in (CHUNKS, [1] * LENGTH):
        assert_equal(in_passes(model, tokens, sizes), expected, sizes)
    for sizes in (CHUNKS, [LENGTH - 9, *[1] * 9]):
        assert_equal(in_passes(model, tokens, sizes, static=True), expected, ("static", sizes))


@torch.no_grad()
def test_where_all_keys_score_the_same_the_first_k_are_attended_to() -> None:
    """In every kind of pass: no token between them and the last one changes the last one's logits."""
    spec = INDEXED["tokens"]
    model, tokens = randomised(spec, dtype=torch.float64), tokens_of(spec, 1, 90)
    for name, weight in model.named_parameters():
        if name.endswith("head_weights.weight"):
            weight.zero_()
    expected, other = model(tokens, logits_to_keep=1), tokens.clone()
    other[:, 37:-1] = (tokens[:, 37:-1] + 1) % spec.vocab
    assert_equal(model(other, logits_to_keep=1), expected)
    for static in (False, True):
        assert_equal(in_passes(model, other, [50, 39, 1], static)[:, -1:], expected, static)
    other[:, 36] = (tokens[:, 36] + 1) % spec.vocab
    assert differs(model(other, logits_to_keep=1), expected)


@given(st.sampled_from(kinds(Router)).flatmap(specs), st.integers(1, 40))
def test_a_router_of_equal_scores_chooses_the_first_experts(spec: Router, tokens: int) -> None:
    """Every kind in the registry whose choice follows from scores."""
    if spec.reads_tokens:
        return
    spec.check_experts(EXPERTS)
    router = spec.build(DIM, EXPERTS)
    with torch.no_grad():
        for weight in router.parameters():
            weight.zero_()
    _, chosen = router(torch.randn(1, tokens, DIM), None)
    assert chosen.tolist() == [[list(range(spec.k))] * tokens]


@torch.no_grad()
def with_equal_rows(router: nn.Module, seed: int) -> nn.Module:
    """A router among whose logits many are equal whatever the order of a sum: each is one element of x, its negative or
    zero. Biases and corrections have two values."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in router.named_parameters(recurse=False):
        weight.copy_(torch.randint(2, weight.shape, generator=generator) / 2)
        if name == "weight":
            factors = torch.randint(-1, 2, (len(weight),), generator=generator).to(weight.dtype)
            weight.zero_()[:, 0] = factors
    return router


@torch.no_grad()
@given(st.sampled_from(ROUTERS), st.integers(0, 2**31))
def test_routers_choose_as_sorting_does(spec: Router, seed: int) -> None:
    """Python's sorting leaves equals in their order: of groups by their two best scores, then of experts."""
    router, x = with_equal_rows(spec.build(DIM, EXPERTS), seed), torch.randn(1, 9, DIM)
    _, chosen = router(x, None)
    ranking = router.ranking(spec.scores(router.logits(x)))  # type: ignore[operator]
    for scores, ids in zip(ranking[0].tolist(), chosen[0].tolist(), strict=True):
        experts = range(EXPERTS)
        if isinstance(spec, GroupedTopK):
            size = EXPERTS // spec.groups
            groups = [scores[g * size : (g + 1) * size] for g in range(spec.groups)]
            worth = [sum(sorted(group)[-2:]) for group in groups]
            kept = sorted(range(spec.groups), key=lambda g, worth=worth: -worth[g])[: spec.keep]
            experts = [e for e in experts if e // size in kept]
        assert ids == sorted(experts, key=lambda e, scores=scores: -scores[e])[: spec.k]


def mixture() -> zoo.Decoder:
    """A layer for each router."""
    norm = zoo.RMSNorm(1e-5)
    attn = zoo.GQA(heads=2, kv_heads=2, head_dim=8, rope=zoo.RoPE(1e4))
    layers = (zoo.Layer(zoo.pre(norm, attn), zoo.pre(norm, zoo.MoE(EXPERTS, zoo.GLU(6), each))) for each in ROUTERS)
    return zoo.Decoder(vocab=50, dim=DIM, layers=tuple(layers), norm=norm)


@torch.no_grad()
def test_experts_with_equal_rows_are_chosen_alike_in_every_pass_and_rank() -> None:
    spec, tokens = mixture(), tokens_of(mixture(), 2, 40)
    model = randomised(spec, dtype=torch.float64)
    for i, layer in enumerate(model.layers):
        with_equal_rows(layer.ffn.block.router, i)
    with recorded_routing() as routing:
        expected = model(tokens)
    assert all((output.logits.sort(-1).values.diff(dim=-1) == 0).any(-1).all() for output in routing)
    sizes = [13, 1, 1, 20, 5]
    for static in (False, True):
        assert_equal(in_passes(model, tokens, sizes, static), expected, static)
    threads = ThreadRanks(2)
    for whole_experts in (False, True):
        parts = [divide(model, Group("threads", Rank(index, 2)), whole_experts) for index in range(2)]

        def in_parts(group: Group, parts: list[Model] = parts) -> list[Tensor]:
            part = parts[group.rank.index]
            return [part(tokens), in_passes(part, tokens, sizes)]

        with threads.connected():
            for found in threads.run(in_parts):
                for logits in found:
                    assert_equal(logits, expected, whole_experts)
