"""Intervals of means and of paired differences over seeds, with Holm's correction, and differences in words.

The interval of a mean of n values uses Student's t with n - 1 degrees of freedom. A 95 % interval extends 2.5 standard
deviations to each side with three seeds, and 1.2 with five. scipy computes the quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any, NamedTuple

from zoo.errors import UsageError, require_package

ALPHA = 0.05  # 95 % intervals
NO_DIFFERENCE = "no difference beyond seeds"


class Interval(NamedTuple):
    """A mean and the bounds of its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences, its uncorrected p value, and its interval at the corrected `level`.

    Holm's procedure tests the difference at the significance level `level`. The interval contains zero exactly if the
    procedure does not reject the hypothesis of no difference.
    """

    interval: Interval
    p: float
    level: float

    @property
    def beyond_seeds(self) -> bool:
        """Whether the corrected interval excludes zero."""
        return not self.interval.low <= 0 <= self.interval.high


def mean_interval(values: Sequence[float], alpha: float = ALPHA) -> Interval:
    """Returns the mean and its interval at confidence 1 - alpha. Raises UsageError for fewer than two values."""
    if len(values) < 2:
        raise UsageError(f"an interval needs at least two values, got {len(values)}: use two seeds or more")
    mean = fmean(values)
    half = float(_student().ppf(1 - alpha / 2, len(values) - 1)) * _standard_error(values)
    return Interval(mean, mean - half, mean + half)


def paired_differences(pairs: Sequence[Sequence[float]], alpha: float = ALPHA) -> list[Difference]:
    """Returns the interval of each sequence of paired differences, corrected by Holm (1979) over all of them.

    A paired difference is a value minus the first model's value at the same seed. In the order of p values, hypothesis
    i of m (i = 0, 1, ...) is tested at alpha / (m - i). The level of the first hypothesis that is not rejected also
    applies to all later ones. Raises UsageError for a sequence of fewer than two differences.
    """
    p_values = [_p_value(each) for each in pairs]
    order = sorted(range(len(pairs)), key=p_values.__getitem__)
    levels, stopped = dict[int, float](), None
    for i, which in enumerate(order):
        levels[which] = stopped or alpha / (len(order) - i)
        if stopped is None and p_values[which] > levels[which]:
            stopped = levels[which]
    return [Difference(mean_interval(each, levels[i]), p_values[i], levels[i]) for i, each in enumerate(pairs)]


def in_words(difference: Difference, show: str, unit: str, scale: float = 1.0) -> str:
    """Returns "no difference beyond seeds" if the corrected interval contains zero, else "lower by 0.12 bits"."""
    if not difference.beyond_seeds:
        return NO_DIFFERENCE
    mean = difference.interval.mean
    return f"{'lower' if mean < 0 else 'higher'} by {format(abs(mean) * scale, show)} {unit}"


def _p_value(differences: Sequence[float]) -> float:
    """Returns the two-sided p value of the hypothesis that the mean is zero.

    If all differences are equal, the p value is 0 for a mean other than zero, else 1.
    """
    mean_interval(differences)  # refuses fewer than two
    mean, error = fmean(differences), _standard_error(differences)
    if not error:
        return 0.0 if mean else 1.0
    return float(2 * _student().sf(abs(mean) / error, len(differences) - 1))


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / sqrt(len(values))


def _student() -> Any:
    """Returns Student's t distribution."""
    return require_package("scipy.stats", "train").t
