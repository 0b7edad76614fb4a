"""The k highest of scores with many ties equal Python's sorting, whatever the shape of the rows."""

from __future__ import annotations

from math import inf, isnan, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters

from tests.models import has_compiler
from zoo.core.inductor import compiled
from zoo.core.ops.indexing import top_k, top_k_set

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
FEW = [0.0, -0.0, 1.0, -1.0, -inf]  # so few values that most scores have equals
ROWS = st.lists(st.sampled_from(FEW), min_size=1, max_size=80)


def in_order(row: list[float], k: int) -> list[int]:
    """Returns the indices of the k highest scores, NaN above all. Python's sorting keeps the order of equal scores."""
    return sorted(range(len(row)), key=lambda i: (not isnan(row[i]), 0.0 if isnan(row[i]) else -row[i]))[:k]


def assert_chosen(scores: Tensor, k: int) -> None:
    values, indices = top_k(scores, k)
    assert values.shape == indices.shape == (*scores.shape[:-1], k)
    as_set = top_k_set(scores, k).flatten(0, -2).tolist()
    rows = zip(scores.flatten(0, -2).tolist(), indices.flatten(0, -2).tolist(), as_set, strict=True)
    for row, chosen, in_no_order in rows:
        assert chosen == in_order(row, k)
        assert sorted(in_no_order) == sorted(chosen)
    torch.testing.assert_close(values, scores.gather(-1, indices), rtol=0, atol=0, equal_nan=True)


@given(row=ROWS, share=st.floats(0, 1), dtype=st.sampled_from(DTYPES))
def test_among_equal_scores_the_earlier_is_chosen(row: list[float], share: float, dtype: torch.dtype) -> None:
    assert_chosen(torch.tensor([row, row[::-1]], dtype=dtype), max(1, round(share * len(row))))


@given(row=st.lists(st.floats(width=32) | st.sampled_from([*FEW, inf, nan, -nan]), min_size=1, max_size=40))
def test_any_scores_have_an_order(row: list[float]) -> None:
    """Scores include infinities, NaN of either sign, and numbers near the smallest."""
    for k in {1, len(row) // 2, len(row)} - {0}:
        assert_chosen(torch.tensor([row]), k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), [(131, 37), (256, 8), (5000, 40), (5000, 2048)])
def test_long_rows(n: int, k: int, dtype: torch.dtype) -> None:
    """torch.topk selects long rows in other ways than short ones; each of these meets ties at the last place."""
    for values in (1, 2, 50):
        scores = torch.randint(values, (2, 3, n), generator=torch.Generator().manual_seed(n)).to(dtype)
        scores = torch.where(scores == 0, -0.0, scores) if values == 2 else scores
        expected = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
        assert torch.equal(top_k(scores, k)[1], expected)
        assert torch.equal(top_k_set(scores, k).sort(-1).values, expected.sort(-1).values)


@given(row=ROWS, more=ROWS, cut=st.integers(0, 80))
def test_a_longer_row_chooses_the_same(row: list[float], more: list[float], cut: int) -> None:
    """Masked scores after those of a row change nothing, so a block of queries chooses the same as each query by
    itself."""
    k = min(1 + cut, len(row))
    longer = torch.tensor([row + [-inf] * len(more)])
    expected = top_k(torch.tensor([row]), k)[1]
    assert torch.equal(top_k(longer, k)[1], expected)
    assert set(top_k_set(longer, k)[0].tolist()) == set(expected[0].tolist())


def test_gradients_reach_the_chosen_scores() -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    values, indices = top_k(scores, 2)
    assert indices.tolist() == [[1, 2]]
    (values * torch.tensor([3.0, 5.0])).sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0.0, 3.0, 5.0, 0.0, 0.0]]


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it compiles
@pytest.mark.usefixtures("_strict_compiler")
def test_compiled_code_chooses_the_same_at_every_length() -> None:
    """One graph also computes the scores: products for which the compiler may change the sign of zero, and values that
    it need not store."""

    def both(x: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = x.relu() * factors
        return *top_k(scores, 7), top_k_set(scores, 7)

    fast = compiled(both, dynamic=True)
    for length in (9, 40, 131, 1000):
        generator = torch.Generator().manual_seed(length)
        x = torch.randint(-3, 2, (2, 5, length), generator=generator).float()
        factors = torch.where(torch.rand(2, 5, 1, generator=generator) < 0.5, -1.0, 1.0)
        assert ((x.relu() * factors) == 0).sum(-1).min() > 1
        expected, got = both(x, factors), fast(x, factors)
        assert torch.equal(got[1], expected[1])
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[2].sort(-1).values, expected[1].sort(-1).values)
    assert counters["stats"]["unique_graphs"] == 1
