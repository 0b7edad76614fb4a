"""Timing: tasks take turns, rounds before the figures settle are not counted, and every sample is kept.

Taking turns (A B C, A B C, ...) spreads a machine's drift over all tasks alike; medians and extremes then say how far a
difference can be trusted. The clock is an argument, so that all of this is tested without waiting, and so that a device
can bring its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from statistics import NormalDist, fmean, median, stdev
from typing import NamedTuple

Clock = Callable[[], float]

WINDOW = 3  # samples under one median while it warms up
AGREEMENT = 0.03  # by which two successive medians may differ once it is warm
MOST_WARMUPS = 10  # rounds; a machine that is never quiet has to be measured as it is
MOST_SECONDS = 120  # of warm-up, after which no round of it begins
# 97.5 % quantiles of Student's t distribution with 1, 2, 3 ... degrees of freedom: a 95 % interval reaches as far to
# either side.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Task:
    """Something to time. `prepare` is not timed; it returns what is."""

    name: tuple[str, ...]
    prepare: Callable[[], Callable[[], None]]


@dataclass(frozen=True)
class Spread:
    """The middle, the standard deviation and the extremes of some samples."""

    median: float
    std: float
    low: float
    high: float


class PairedRatio(NamedTuple):
    """How many times as fast as a baseline, with the ends of its 95 % interval."""

    ratio: float
    low: float
    high: float


Samples = dict[tuple[str, ...], list[float]]


def measure(
    tasks: Sequence[Task],
    samples: Samples,
    *,
    warmups: Samples | None = None,
    repetitions: int = 5,
    most_warmups: int = MOST_WARMUPS,
    clock: Clock = time.perf_counter,
    tick: Callable[[], object] = lambda: None,
    expect: Callable[[int], object] = lambda runs: None,
) -> None:
    """Run every task in each round: rounds of warm-up until all tasks are `settled`, `most_warmups` at most and
    none after MOST_SECONDS, and then `repetitions`, whose seconds are appended to `samples` by the task's name; those
    of the warm-up to `warmups`.

    Both are filled as time goes, so they hold what there is when an exception, Ctrl-C among them, ends the rounds
    early. `tick` is called after each run, outside the time taken; `expect` before each round, with the number of runs
    that there will be in all if the warm-up ends with it.
    """
    warmups = {} if warmups is None else warmups
    for turn in range(most_warmups):
        taken = sum(map(sum, warmups.values()))
        if taken >= MOST_SECONDS or all(settled(warmups.get(task.name, ())) for task in tasks):
            break
        expect(len(tasks) * (max(turn, min(WINDOW, most_warmups - 1)) + 1 + repetitions))
        _round(tasks, warmups, clock, tick)
    for _ in range(repetitions):
        _round(tasks, samples, clock, tick)


def settled(seconds: Sequence[float]) -> bool:
    """Whether the median of the last samples agrees with the one before it: nothing is warming up any more."""
    if len(seconds) <= WINDOW:
        return False
    before, now = median(seconds[-WINDOW - 1 : -1]), median(seconds[-WINDOW:])
    return abs(now - before) <= AGREEMENT * before


def _round(tasks: Sequence[Task], samples: Samples, clock: Clock, tick: Callable[[], object]) -> None:
    for task in tasks:
        run = task.prepare()
        start = clock()
        run()
        seconds = clock() - start
        samples.setdefault(task.name, []).append(seconds)
        tick()


def spread(values: Sequence[float]) -> Spread:
    """Of some values; the standard deviation of a lone one is 0."""
    return Spread(median(values), stdev(values) if len(values) > 1 else 0.0, min(values), max(values))


def rate(amount: float, seconds: Sequence[float]) -> Spread:
    """`amount` a second, over samples of the seconds it took. The median is that of the seconds."""
    rates = spread([amount / each for each in seconds])
    return Spread(amount / median(seconds), rates.std, rates.low, rates.high)


def paired_ratio(seconds: Sequence[float], baseline_seconds: Sequence[float]) -> PairedRatio:
    """How many times as fast something is as a baseline that took turns with it: above 1 it is faster.

    The n-th samples of both are from the same round, so a drift of the machine cancels in their ratio. The ratio is the
    geometric mean over the rounds; the interval is Student's for the mean of the ratios' logarithms, as if these were
    independent and normally distributed. A round that an interruption left without one of the two does not count. One
    round says nothing about the spread: its interval is from 0 to infinity. Raises ValueError without any round.
    """
    logs = [log(base / own) for own, base in zip(seconds, baseline_seconds, strict=False)]
    if not logs:
        raise ValueError("a paired ratio needs a round in which both were timed")
    if len(logs) == 1:
        return PairedRatio(exp(logs[0]), 0.0, inf)
    mean, margin = fmean(logs), t_quantile(len(logs) - 1) * stdev(logs) / sqrt(len(logs))
    return PairedRatio(exp(mean), exp(mean - margin), exp(mean + margin))


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution with so many degrees of freedom, 1 or more, to three digits.

    From 31 on by its expansion around the normal quantile in powers of 1 / freedom (Abramowitz and Stegun, 26.7.5).
    """
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
