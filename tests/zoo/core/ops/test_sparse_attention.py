"""Attention over chosen keys against dense attention under the mask of what was chosen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters

from tests.exact import assert_computes, assert_equal
from tests.models import has_compiler
from zoo.core.forward_context import causal, visible
from zoo.core.inductor import compiled
from zoo.core.ops import indexing as module
from zoo.core.ops.indexing import NOT_CHOSEN, plain_sparse_attention, sees, sparse_attention, top_keys

pytestmark = pytest.mark.usefixtures("_float64")

CPU = torch.device("cpu")
K, WIDTH = 5, 6
# (new, keys): decode, the last query of k tokens, prefill, chunks over a past; at most k keys and more.
PASSES = [(1, 1), (1, 5), (1, 6), (1, 40), (3, 4), (5, 5), (12, 12), (3, 8), (7, 30)]


def mask_of(new: int, keys: int) -> Tensor | None:
    """As layer caches make it: None for a single query or a prefill into an empty cache."""
    return None if new in (1, keys) else visible(torch.arange(keys - new, keys), torch.arange(keys))


def inputs(new: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of 4 heads, the shared stream, and what random scores choose."""
    q, latent = torch.randn(2, 4, new, 8), torch.randn(2, 1, keys, 8)
    return q, latent, top_keys(torch.randn(2, new, keys), K, causal(new, keys, CPU))


@pytest.mark.parametrize("differentiates", [False, True])
def test_gathered_keys_with_sinks(differentiates: bool) -> None:
    """A sink takes its part of each head's weights; places that no key is chosen for take none."""
    q, latent, chosen = inputs(7, 30)
    chosen[:, 3, 1:] = NOT_CHOSEN
    sinks = torch.randn(4)
    with torch.set_grad_enabled(differentiates):
        got = module.gathered_attention(q, latent, chosen, 0.3, sinks)
    scores = (q @ latent.mT * 0.3).masked_fill(~sees(chosen, 30), float("-inf"))
    weights = torch.cat([scores, sinks.view(1, 4, 1, 1).expand(2, -1, 7, -1)], dim=-1).softmax(-1)
    assert_equal(got, weights[..., :-1] @ latent)


@torch.no_grad()
@pytest.mark.parametrize("elements", [1, 100, 2**21], ids=["a query", "several queries", "all queries"])
@pytest.mark.parametrize(("new", "keys"), PASSES)
def test_gathered_attention_equals_dense_attention(
    new: int, keys: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of one query, of several and of all."""
    monkeypatch.setattr(module, "GATHERED_ELEMENTS", elements)
    q, latent, chosen = inputs(new, keys)
    out = sparse_attention(q, latent, chosen, mask_of(new, keys), 0.3, WIDTH)
    assert_equal(out, plain_sparse_attention(q, latent, chosen, 0.3, WIDTH))


@torch.no_grad()
def test_narrow_dtypes_are_as_near_as_dense_attention() -> None:
    def sparse(q: Tensor, latent: Tensor, chosen: Tensor) -> Tensor:
        return sparse_attention(q, latent, chosen, mask_of(7, 30), 0.3, WIDTH)

    assert_computes(sparse, lambda *given: plain_sparse_attention(*given, 0.3, WIDTH), lambda: inputs(7, 30))


@pytest.mark.parametrize(("new", "keys"), [(1, 40), (7, 30), (12, 12)])
def test_gradients_equal_those_of_dense_attention(new: int, keys: int) -> None:
    q, latent, chosen = inputs(new, keys)
    given = [x.requires_grad_() for x in (q, latent)]
    out, expected = (
        sparse_attention(*given, chosen, mask_of(new, keys), 0.3, WIDTH),
        plain_sparse_attention(*given, chosen, 0.3, WIDTH),
    )
    weight = torch.randn_like(out)
    for got, wanted in zip(*(torch.autograd.grad(x, given, weight) for x in (out, expected)), strict=True):
        assert wanted.abs().max() > 0
        assert_equal(got, wanted)


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("differentiates", [False, True], ids=["operator", "traced"])
@pytest.mark.parametrize("decode", [True, False], ids=["decode", "prefill"])
def test_one_graph_serves_every_length(decode: bool, differentiates: bool) -> None:
    """Below k, at k and above it; of single-token decode the compiler is not told the number of keys."""
    from torch._dynamo.decorators import mark_unbacked, maybe_mark_dynamic

    torch.compiler.reset()
    counters.clear()
    function = compiled(sparse_attention, dynamic=True)
    lengths = [(1, 7), (1, 3), (1, 5), (1, 6), (1, 60)] if decode else [(7, 19), (3, 4), (2, 5), (7, 300), (200, 201)]
    with dynamo.patch(fail_on_recompile_limit_hit=True), torch.set_grad_enabled(differentiates):
        for new, keys in lengths:
            q, latent, chosen = inputs(new, keys)
            mask = mask_of(new, keys)
            (mark_unbacked if decode else maybe_mark_dynamic)(latent, 2)
            out = function(q, latent, chosen, mask, 0.3, WIDTH)
            assert_equal(out, plain_sparse_attention(q, latent, chosen, 0.3, WIDTH))
    assert counters["stats"]["unique_graphs"] == 1
    torch.compiler.reset()
