"""Keys that an index chooses: their scores by the formula, and the choice by sorting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from tests.exact import assert_as_near, assert_equal
from zoo.core.forward_context import causal, visible
from zoo.core.ops import indexing as module
from zoo.core.ops.indexing import NOT_CHOSEN, Index, choose_keys, index_scores, sees, sees_all, top_keys

pytestmark = pytest.mark.usefixtures("_float64")
CPU = torch.device("cpu")
K = 5
# (new, keys): decode, the last query of k tokens, prefill, chunks over a past; at most k keys and more.
PASSES = [(1, 1), (1, 5), (1, 6), (1, 40), (3, 4), (5, 5), (12, 12), (3, 8), (7, 30)]


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
    """And in blocks of keys as in one."""
    draws = [[torch.randn(shape).bfloat16() for shape in ((2, 3, 4, 8), (2, 3, 4), (2, 70, 8))] for _ in range(3)]
    exact = [index_scores(*(each.double() for each in draw)) for draw in draws]
    wide = [index_scores(*(each.float() for each in draw)) for draw in draws]
    for elements in (1, 500, 2**19):
        monkeypatch.setattr(module, "SCORE_ELEMENTS", elements)
        assert_as_near([index_scores(*draw) for draw in draws], wide, exact)


@pytest.mark.parametrize(("new", "keys"), PASSES)
def test_the_top_keys_are_the_best_of_those_a_query_sees(new: int, keys: int) -> None:
    scores = torch.randn(2, new, keys)
    chosen = top_keys(scores, K, causal(new, keys, CPU))
    assert chosen.shape == (2, new, K)
    for b in range(2):
        for t in range(new):
            seen = keys - new + t + 1
            best = sorted(range(seen), key=lambda s: -scores[b, t, s].item())[:K]
            assert sorted(chosen[b, t].tolist()) == sorted(best + [NOT_CHOSEN] * (K - len(best)))


def test_without_a_mask_every_token_may_be_chosen() -> None:
    scores = torch.tensor([[[3.0, 1.0, 2.0, 5.0]]])
    assert set(top_keys(scores, 2)[0, 0].tolist()) == {0, 3}
    assert set(top_keys(scores, 6)[0, 0].tolist()) == {0, 1, 2, 3, NOT_CHOSEN}


@pytest.mark.parametrize(("new", "keys"), PASSES)
def test_the_mask_holds_exactly_what_was_chosen(new: int, keys: int) -> None:
    chosen = top_keys(torch.randn(2, new, keys), K, causal(new, keys, CPU))
    seen = sees(chosen, keys)
    assert seen.shape == (2, 1, new, keys)
    for b in range(2):
        for t in range(new):
            assert set(seen[b, 0, t].nonzero().flatten().tolist()) == set(chosen[b, t].tolist()) - {NOT_CHOSEN}


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
    weights = torch.randn(2, new, 2)  # of so few heads, many scores are ReLU's zero: they tie
    chosen = sets(choose_keys(Index(q, weights, keys, K), past, every))
    scores = index_scores(q, weights, keys[:, 0])
    for b in range(2):
        for t in range(new):
            seen = (past + t + 1) // every
            assert chosen[b][t] == set(sorted(range(seen), key=lambda s: -scores[b, t, s].item())[:K])


@torch.no_grad()
def test_a_token_that_is_not_the_last_place_chooses_by_the_mask() -> None:
    """As a static cache is read: empty places after the token's own are never chosen."""
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
