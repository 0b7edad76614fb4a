"""Sampling from logits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.errors import UsageError
from zoo.model.sampling import Sampler

CPU = torch.device("cpu")
LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0]])


def sampler(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0) -> Sampler:
    return Sampler(temperature, top_k, top_p, seed, CPU)


def drawn(sample: Sampler, logits: Tensor = LOGITS, times: int = 4000) -> dict[int, float]:
    """Token id -> how often it was drawn."""
    counts = Counter(sample(logits.expand(times, -1)).tolist())
    return {token: count / times for token, count in counts.items()}


def test_draws_follow_the_softmax() -> None:
    for temperature in (0.5, 1.0, 3.0):
        frequencies, expected = drawn(sampler(temperature)), (LOGITS[0] / temperature).softmax(-1)
        for token, probability in enumerate(expected.tolist()):
            spread = 5 * (probability * (1 - probability) / 4000) ** 0.5
            assert abs(frequencies.get(token, 0.0) - probability) < spread + 1e-9


@pytest.mark.parametrize(
    ("top_k", "left"), [(1, {1}), (2, {1, 3}), (3, {1, 3, 2}), (5, {0, 1, 2, 3, 4}), (99, {0, 1, 2, 3, 4})]
)
def test_top_k_keeps_the_k_most_likely(top_k: int, left: set[int]) -> None:
    assert drawn(sampler(temperature=5.0, top_k=top_k)).keys() == left


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.125, 0.125]])  # exact in binary
    logits = probabilities.log()
    for top_p, left in (
        (1e-50, {0}),
        (0.5, {0}),
        (0.51, {0, 1}),
        (0.75, {0, 1}),
        (0.87, {0, 1, 2}),  # of two that are equally likely the first
        (0.9, {0, 1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ):
        assert drawn(sampler(top_p=top_p), logits).keys() == left


def test_top_p_comes_after_top_k() -> None:
    """Among the 2 most likely of 0.4, 0.3, 0.3 the first holds 4/7 of the probability."""
    logits = torch.tensor([[0.4, 0.32, 0.28]]).log()
    assert drawn(sampler(top_k=2, top_p=0.5), logits).keys() == {0}
    assert drawn(sampler(top_p=0.5), logits).keys() == {0, 1}


def test_rows_are_sampled_independently() -> None:
    logits = torch.full((2, 6), -1e9)
    logits[0, 4] = logits[1, 1] = 0.0
    assert sampler()(logits).tolist() == [4, 1]
    assert sampler(temperature=0.0)(logits).tolist() == [4, 1]


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=9),
    temperature=st.floats(0, 100),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.none() | st.floats(0, 1, exclude_min=True),
)
def test_a_sampled_token_is_one_that_was_kept(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    scores = torch.tensor([logits])
    drawn = logits[int(sampler(temperature, top_k, top_p)(scores))]
    assert sum(score > drawn for score in logits) < min(top_k or len(logits), len(logits))
    if top_k is None and top_p is not None:
        above = ((scores - scores.max()) / max(temperature, 1e-30)).softmax(-1)[scores > drawn].sum()
        assert above < top_p + 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1 is below 0"),
        ({"temperature": float("nan")}, "temperature nan is below 0"),
        ({"top_k": 0}, "top_k 0 is below 1"),
        ({"top_k": -5}, "top_k -5 is below 1"),
        ({"top_p": 0.0}, r"top_p 0.0 is not in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p 1.1 is not in \(0, 1\]"),
        ({"top_p": float("nan")}, r"top_p nan is not in \(0, 1\]"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sampler(**options)
