"""Intervals over seeds: equal to scipy's own, and corrected by Holm's procedure as it is defined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.learning.intervals import ALPHA, NO_DIFFERENCE, in_words, mean_interval, paired_differences
from zoo.errors import UsageError

VALUES = st.floats(-5, 5).map(lambda value: round(value, 4))
SAMPLES = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.lists(VALUES, min_size=n, max_size=n), min_size=1, max_size=8)
)


def spread(values: list[float]) -> bool:
    return float(np.std(values)) > 1e-6


@given(SAMPLES)
def test_intervals_and_p_values_are_scipys(samples: list[list[float]]) -> None:
    for values, found in zip(samples, paired_differences(samples), strict=True):
        if not spread(values):
            continue
        mean, error = np.mean(values), stats.sem(values)
        for interval, level in ((mean_interval(values), 0.05), (found.interval, found.level)):
            bounds = stats.t.interval(1 - level, len(values) - 1, mean, error)
            assert interval == pytest.approx((mean, *bounds))
        assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


@given(SAMPLES)
def test_a_corrected_interval_leaves_out_zero_exactly_where_holm_rejects(samples: list[list[float]]) -> None:
    samples = [values for values in samples if spread(values)]
    p_values = [stats.ttest_1samp(values, 0).pvalue for values in samples]
    rejected = set()
    for i, which in enumerate(np.argsort(p_values)):  # Holm 1979
        if p_values[which] > ALPHA / (len(samples) - i):
            break
        rejected.add(int(which))
    found = paired_differences(samples)
    assert {i for i, each in enumerate(found) if each.beyond_seeds} == rejected
    assert all(ALPHA / len(samples) <= each.level <= ALPHA for each in found)


def test_equal_differences_have_no_spread() -> None:
    same, other = paired_differences([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    assert (same.p, other.p) == (1.0, 0.0)
    assert (same.beyond_seeds, other.beyond_seeds) == (False, True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([-0.12, -0.121, -0.119], "lower by 0.12 bits"),
        ([0.25, 0.251, 0.249], "higher by 0.25 bits"),
        ([0.2, -0.1, 0.1], NO_DIFFERENCE),
    ],
)
def test_words(values: list[float], words: str) -> None:
    assert in_words(paired_differences([values])[0], ".2f", "bits") == words


@pytest.mark.parametrize("values", [[], [0.5]])
def test_too_few_values_are_refused(values: list[float]) -> None:
    with pytest.raises(UsageError, match="two seeds or more"):
        mean_interval(values)
    with pytest.raises(UsageError, match="two seeds or more"):
        paired_differences([values])
