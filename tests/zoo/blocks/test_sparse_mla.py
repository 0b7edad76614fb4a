"""Sparse latent attention: against dense attention under the mask of its indexer's choice, and compiled."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tests.exact import assert_equal
from tests.models import has_compiler
from tests.presets import split
from zoo import MLA, Decoder, Layer, LayerNorm, RMSNorm, RoPE, pre
from zoo.blocks.sparse_mla import Indexer, SparseMLA
from zoo.core import inductor
from zoo.core.cache import Cache, NoCache, prepare_forward
from zoo.core.ops.indexing import choose_keys, sees
from zoo.costs import CacheSpec
from zoo.errors import SpecError
from zoo.model.compile import mark_dynamic_lengths

DIM, K = 32, 6
INDEXER = Indexer(heads=16, head_dim=8, k=K, norm=LayerNorm(1e-6))
SPEC = SparseMLA(
    heads=3,
    q_rank=24,
    kv_rank=16,
    nope_dim=6,
    rope_dim=4,
    v_dim=5,
    norm=RMSNorm(1e-6),
    rope=RoPE(1e4),
    indexer=INDEXER,
)
SMALL_LATENT = replace(SPEC, kv_rank=4)  # absorbs in every pass


def built(spec: MLA) -> nn.Module:
    module = spec.build(DIM)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape) * (0.3 if weight.ndim == 2 else 1.0))
    return module


def run(module: nn.Module, x: Tensor, cache: Any = None, past: int = 0) -> Tensor:
    cache = cache or NoCache(CacheSpec())
    return module(x, prepare_forward(past, x.shape[1], module.spec.tables(), [cache], dtype=torch.float64), cache)


def new_cache(spec: MLA, tokens: int) -> Any:
    return Cache([spec.cache_spec()], 2, tokens, torch.float64, torch.device("cpu")).layers[0]


def masked(module: nn.Module, x: Tensor) -> Tensor:
    """Computes each head separately over expanded keys and values, under the mask of the keys that the indexer
    chooses."""
    spec = module.spec
    ctx = prepare_forward(0, x.shape[1], spec.tables(), [NoCache(CacheSpec())], dtype=torch.float64)
    q_nope, q_rope, latent = module.project(x, ctx)
    index = module.indexer(x, module.q[1](module.q[0](x)), ctx, module.indexer.keys(x, ctx))
    seen = sees(choose_keys(index, 0), x.shape[1])[:, 0]
    k, v = module.expand(latent)
    scale = spec.scale or (spec.nope_dim + spec.rope_dim) ** -0.5
    out = []
    for h in range(spec.heads):
        scores = scale * torch.cat([q_nope, q_rope], -1)[:, h] @ k[:, h].mT
        out.append(scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v[:, h])
    return module.o(torch.cat(out, -1))


@torch.no_grad()
@pytest.mark.parametrize("length", [1, K - 1, K, K + 1, 2 * K, 100])
@pytest.mark.parametrize("spec", [SPEC, SMALL_LATENT, replace(SPEC, scale=0.5)], ids=["", "small latent", "scale"])
def test_it_is_dense_attention_under_the_mask_of_what_was_chosen(spec: SparseMLA, length: int) -> None:
    module, x = built(spec), torch.randn(2, length, DIM)
    assert_equal(run(module, x), masked(module, x))


SHARING = replace(SPEC, shares_choice=True)


def test_a_layer_that_shares_a_choice_has_the_costs_of_no_indexer() -> None:
    assert SHARING.cache_spec() == MLA.cache_spec(SPEC)
    assert SPEC.params(DIM) - SHARING.params(DIM) == INDEXER.params(DIM, 24)
    assert sum(weight.numel() for weight in SHARING.build(DIM).parameters()) == SHARING.params(DIM)
    full, shared = (spec.flop_breakdown(DIM, 50, 9) for spec in (SPEC, SHARING))
    assert full == shared | {"indexer": INDEXER.flops(DIM, 24, 50, 9)}


def test_a_choice_is_taken_from_an_earlier_layer_of_the_same_k() -> None:
    norm = RMSNorm(1e-6)
    full, shared, other = (
        Layer(pre(norm, spec), None) for spec in (SPEC, SHARING, replace(SPEC, indexer=replace(INDEXER, k=K + 1)))
    )
    Decoder(9, DIM, (full, other, shared, shared), norm)
    for layers in ((shared, full), (other, shared)):
        with pytest.raises(SpecError, match=f"takes top {K}, which no earlier layer hands on"):
            Decoder(9, DIM, layers, norm)


def test_gradients_are_those_of_the_masked_form() -> None:
    """They are compared for all parameters except the indexer's, which get no gradient, for fewer and for more than k
    tokens."""
    for length in (K, 50):
        module, x = built(SPEC), torch.randn(2, length, DIM, requires_grad=True)
        names, given = zip(*((n, w) for n, w in module.named_parameters() if not n.startswith("indexer.")), strict=True)
        out, expected = run(module, x), masked(module, x)
        with torch.no_grad():
            assert_equal(run(module, x), out)
        weight = torch.randn_like(out)
        got, wanted = (torch.autograd.grad(y, (x, *given), weight) for y in (out, expected))
        for name, one, other in zip(("x", *names), got, wanted, strict=True):
            assert other.abs().max() > 0, name
            assert_equal(one, other)
        run(module, x).sum().backward()
        assert all(weight.grad is None for weight in module.indexer.parameters())


@given(past=st.integers(0, 90), new=st.integers(1, 90))
def test_an_indexer_scores_the_pairs_of_tokens_that_choose(past: int, new: int) -> None:
    pairs = sum(position + 1 for position in range(past, past + new) if position + 1 > K)
    projected = DIM * 8 + (24 * 16 * 8 + DIM * 16 if past + new > K else 0)
    assert INDEXER.flops(DIM, 24, past, new) == 2 * (new * projected + pairs * 16 * (8 + 1))


def test_what_no_indexer_can_do_is_refused() -> None:
    with pytest.raises(SpecError, match="q_rank is None"):
        replace(SPEC, q_rank=None)
    with pytest.raises(SpecError, match="rope_dim=10 is above the indexer's head_dim=8"):
        replace(SPEC, rope_dim=10)


def call(module: nn.Module, x: Tensor, ctx: Any, cache: Any) -> Tensor:
    return module(x, ctx, cache)


@torch.no_grad()
@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_strict_compiler")
@pytest.mark.parametrize("backend", split(["eager", "inductor"], ["eager"]))
def test_three_graphs_serve_every_length(backend: str) -> None:
    """The graphs are prefill into an empty cache, prefill into a filled one, and single tokens. Lengths are below k,
    across k and above."""
    module, x = built(SPEC), torch.randn(2, 100, DIM)
    compiled = inductor.compiled(call, backend=backend)
    for sizes, room in (
        ([40, 1, 1, 23, 1], 5),  # the first lengths are no widths of the module, with which torch would identify them
        ([K - 2, 1, 1, 1, 1, 50, 1, 1], 3),
        ([3, 2, 1, 1, 70], 0),
        ([K, 1, 9], 1),
        ([1, 3, 2, 3, 80, 1], 20),
    ):
        caches = [new_cache(SPEC, sum(sizes) + room) for _ in range(2)]
        for past, part in zip(accumulate(sizes, initial=0), x[:, : sum(sizes)].split(sizes, 1), strict=False):
            outs = []
            for function, cache in zip((call, compiled), caches, strict=True):
                ctx = prepare_forward(past, part.shape[1], SPEC.tables(), [cache], dtype=torch.float64)
                mark_dynamic_lengths(ctx, part.shape[1])
                outs.append(function(module, part.clone(), ctx, cache))
            assert_equal(outs[0], outs[1])
    assert counters["stats"]["unique_graphs"] <= 3


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_strict_compiler")
@pytest.mark.parametrize("backend", split(["aot_eager", "inductor"], ["aot_eager"]))
def test_compiled_gradients(backend: str) -> None:
    """One graph serves up to k tokens, another one all longer passes."""
    module = built(SPEC)
    compiled = inductor.compiled(call, backend=backend)
    given = [weight for name, weight in module.named_parameters() if not name.startswith("indexer.")]
    for length in (20, 4, 33, K, 50):
        x, cache = torch.randn(2, length, DIM), NoCache(CacheSpec())
        grads = []
        for function in (call, compiled):
            ctx = prepare_forward(0, length, SPEC.tables(), [cache], dtype=torch.float64)
            mark_dynamic_lengths(ctx, length)
            grads.append(torch.autograd.grad(function(module, x, ctx, cache).square().sum(), given))
        for one, other in zip(*grads, strict=True):
            assert_equal(one, other)
    assert counters["stats"]["unique_graphs"] <= 2


class _Uncached(nn.Module):
    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        return run(self.mixer, x)


@pytest.mark.filterwarnings("ignore")
def test_an_exported_mixer_serves_other_lengths_and_has_no_operator_of_the_zoo() -> None:
    module = _Uncached(built(SPEC))
    lengths = {"x": {1: torch.export.Dim("t", min=K + 1, max=200)}}
    with torch.no_grad():
        program = torch.export.export(module, (torch.randn(2, 30, DIM),), dynamic_shapes=lengths)
        assert "zoo" not in str(program.graph)
        for length in (30, K + 1, 77):
            x = torch.randn(2, length, DIM)
            assert_equal(program.module()(x), module(x))
