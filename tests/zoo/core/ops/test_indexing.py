"""Keys that an index chooses, and attention over them: against sorting and dense attention under a mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters
from torch.library import opcheck

from tests.exact import assert_as_near, assert_computes, assert_equal
from tests.models import has_compiler
from zoo.core.forward_context import causal, visible
from zoo.core.inductor import compiled
from zoo.core.ops import indexing as module
from zoo.core.ops.indexing import (
    NOT_CHOSEN,
    Index,
    choose_keys,
    index_scores,
    plain_sparse_attention,
    sees,
    sees_all,
    sparse_attention,
    top_keys,
)

pytestmark = pytest.mark.usefixtures("_float64")
CPU = torch.device("cpu")
K, WIDTH = 5, 6


def sets(chosen: Tensor) -> list[list[set[int]]]:
    return [[set(row) - {NOT_CHOSEN} for row in sequence] for sequence in chosen.tolist()]


@torch.no_grad()
def test_scores_are_weighted_rectified_products() -> None:
    q, weights, keys = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4), torch.randn(2, 7, 8)
    got = index_scores(q, weights, keys)
    for b, t, s in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(7)).tolist():
        terms = [weights[b, t, h].item() * max(torch.dot(q[b, t, h], keys[b, s]).item(), 0.0) for h in range(4)]
        assert_equal(got[b, t, s], torch.tensor(sum(terms)))


@torch.no_grad()
def test_bfloat16_is_scored_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores in blocks of keys equal those in one block."""
    draws = [[torch.randn(shape).bfloat16() for shape in ((2, 3, 4, 8), (2, 3, 4), (2, 70, 8))] for _ in range(3)]
    exact = [index_scores(*(each.double() for each in draw)) for draw in draws]
    wide = [index_scores(*(each.float() for each in draw)) for draw in draws]
    for elements in (1, 500, 2**19):
        monkeypatch.setattr(module, "SCORE_ELEMENTS", elements)
        assert_as_near([index_scores(*draw) for draw in draws], wide, exact)


@pytest.mark.parametrize("every", [1, 4])
def test_the_first_tokens_see_no_more_than_k(every: int) -> None:
    for past in range(8 * every):
        for new in range(1, 8):
            few = sum((past + t + 1) // every <= K for t in range(new))
            assert sees_all(K, past, new, every) == few


@torch.no_grad()
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("past", [0, 1, 20, 90])
def test_the_best_of_the_complete_keys_are_chosen(past: int, every: int) -> None:
    """A key of several tokens is seen from its last token on."""
    new = 70
    stored = (past + new) // every
    q, keys = torch.randn(2, new, 2, 8), torch.randn(2, 1, stored, 8)
    weights = torch.randn(2, new, 2)  # with so few heads, many scores are zero after the ReLU and tie
    chosen = sets(choose_keys(Index(q, weights, keys, K), past, every))
    scores = index_scores(q, weights, keys[:, 0])
    for b in range(2):
        for t in range(new):
            seen = (past + t + 1) // every
            assert chosen[b][t] == set(sorted(range(seen), key=lambda s: -scores[b, t, s].item())[:K])


@torch.no_grad()
def test_a_token_that_is_not_the_last_place_chooses_by_the_mask() -> None:
    """A static cache is read like this: empty places after the token's own are never chosen."""
    q, weights, keys = torch.randn(1, 1, 2, 8), torch.ones(1, 1, 2), torch.randn(1, 1, 20, 8)
    for position in (0, 3, 4, 12):
        mask = visible(torch.tensor([position]), torch.arange(20))
        chosen = sets(choose_keys(Index(q, weights, keys, K), 19, mask=mask))[0][0]
        scores = index_scores(q, weights, keys[:, 0, : position + 1])[0, 0]
        assert chosen == set(sorted(range(position + 1), key=lambda s: -scores[s].item())[:K])


@pytest.mark.parametrize(("new", "keys"), [(1, 40), (7, 30)])
def test_the_operator_keeps_the_compilers_rules(new: int, keys: int) -> None:
    given = torch.randn(2, new, 6, 8), torch.rand(2, new, 6), torch.randn(2, 1, keys, 8)
    opcheck(module._choice_operator, (*given, K, keys - new, 1, None))


def mask_of(new: int, keys: int) -> Tensor | None:
    """Returns the mask that layer caches make: None for a single query or a prefill into an empty cache."""
    return None if new in (1, keys) else visible(torch.arange(keys - new, keys), torch.arange(keys))


def inputs(new: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries of 4 heads, the shared stream, and the keys that random scores choose."""
    q, latent = torch.randn(2, 4, new, 8), torch.randn(2, 1, keys, 8)
    return q, latent, top_keys(torch.randn(2, new, keys), K, causal(new, keys, CPU))


@pytest.mark.parametrize("elements", [1, 100, 2**21], ids=["a query", "several queries", "all queries"])
@pytest.mark.parametrize("differentiates", [False, True])
def test_gathered_keys_with_sinks(differentiates: bool, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attention runs in blocks of queries. A sink takes its share of each head's weights; places without a chosen
    key take none."""
    monkeypatch.setattr(module, "GATHERED_ELEMENTS", elements)
    q, latent, chosen = inputs(7, 30)
    chosen[:, 3, 1:] = NOT_CHOSEN
    sinks = torch.randn(4)
    with torch.set_grad_enabled(differentiates):
        got = module.gathered_attention(q, latent, chosen, 0.3, sinks)
    scores = (q @ latent.mT * 0.3).masked_fill(~sees(chosen, 30), float("-inf"))
    weights = torch.cat([scores, sinks.view(1, 4, 1, 1).expand(2, -1, 7, -1)], dim=-1).softmax(-1)
    assert_equal(got, weights[..., :-1] @ latent)


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
    """Lengths are below k, at k and above it. In single-token decode, the number of keys is hidden from the
    compiler."""
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
