"""Timing in turns: every task runs once per round. All samples are kept, warm-up samples separately.

Turns (A B C, A B C, ...) spread a machine's drift evenly over all tasks. Medians and extremes then show how far a
difference can be trusted. The clock is an argument, for tests that do not wait and for devices with their own clock.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from statistics import NormalDist, fmean, median, stdev
from typing import NamedTuple, Self

Clock = Callable[[], float]
Agree = Callable[[float], float]  # seconds measured in this process -> seconds to record (float: unchanged)
Samples = dict[tuple[str, ...], list[float]]  # seconds of each run, by the task's name

MEDIAN_SAMPLES = 3  # samples per median during the warm-up
MEDIAN_TOLERANCE = 0.03  # two successive medians have settled if they differ by no more than this share
MIN_WARMUP_ROUNDS = MEDIAN_SAMPLES + 1  # before this round, no task counts as settled
MAX_WARMUP_ROUNDS = 10  # after these rounds, tasks are measured even if they have not settled
MAX_WARMUP_SECONDS = 120  # no warm-up round begins after this time
# 97.5 % quantiles of Student's t distribution with 1, 2, 3 ... degrees of freedom: the half width of a 95 % interval.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Task:
    """A task to time. `prepare` runs untimed and returns the function to time."""

    name: tuple[str, ...]
    prepare: Callable[[], Callable[[], object]]

    @classmethod
    def ready(cls, name: tuple[str, ...], run: Callable[[], object]) -> Self:
        """Returns a task that needs no preparation."""
        return cls(name, lambda: run)


class Spread(NamedTuple):
    """The median, the standard deviation and the extremes of some samples."""

    median: float
    std: float
    min: float
    max: float


class PairedRatio(NamedTuple):
    """A speed relative to a baseline's, with the bounds of its 95 % interval."""

    ratio: float
    low: float
    high: float


def measure(
    tasks: Sequence[Task],
    samples: Samples,
    *,
    warmups: Samples | None = None,
    repetitions: int = 5,
    max_warmups: int = MAX_WARMUP_ROUNDS,
    clock: Clock = time.perf_counter,
    agree: Agree = float,
    tick: Callable[[], object] = lambda: None,
    expect: Callable[[int], object] = lambda runs: None,
) -> None:
    """Runs every task once per round: warm-up rounds first, then `repetitions` rounds.

    Warm-up rounds run until all tasks have `settled`: at most `max_warmups` rounds, and none begins after
    MAX_WARMUP_SECONDS. Their seconds go to `warmups`, the seconds of the other rounds to `samples`. Both are filled
    after each run, so they hold all measurements even if an exception or Ctrl-C ends the rounds early.

    `agree` maps the measured seconds of a run to the seconds to record, which must be equal in all processes. `tick` is
    called after each run and not timed. `expect` is called before each warm-up round, with the total number of runs if
    the warm-up ends with that round.
    """
    warmups = {} if warmups is None else warmups
    for done in range(max_warmups):
        seconds = sum(map(sum, warmups.values()))
        if seconds >= MAX_WARMUP_SECONDS or all(settled(warmups.get(task.name, ())) for task in tasks):
            break
        expect(len(tasks) * (max(done + 1, min(MIN_WARMUP_ROUNDS, max_warmups)) + repetitions))
        _round(tasks, warmups, clock, agree, tick)
    for _ in range(repetitions):
        _round(tasks, samples, clock, agree, tick)


def settled(seconds: Sequence[float]) -> bool:
    """Whether the medians of the last samples and of those one round earlier agree, so that the warm-up may end."""
    if len(seconds) < MIN_WARMUP_ROUNDS:
        return False
    before, now = median(seconds[-MEDIAN_SAMPLES - 1 : -1]), median(seconds[-MEDIAN_SAMPLES:])
    return abs(now - before) <= MEDIAN_TOLERANCE * before


def _round(tasks: Sequence[Task], samples: Samples, clock: Clock, agree: Agree, tick: Callable[[], object]) -> None:
    for task in tasks:
        run = task.prepare()
        start = clock()
        run()
        seconds = clock() - start
        samples.setdefault(task.name, []).append(agree(seconds))
        tick()


def rate(amount: float, seconds: Sequence[float]) -> Spread:
    """Returns the rate, `amount` per second, at the median of the samples' seconds, with its spread.

    A single sample has the standard deviation 0.
    """
    rates = [amount / each for each in seconds]
    std = stdev(rates) if len(rates) > 1 else 0.0
    return Spread(amount / median(seconds), std, min(rates), max(rates))


def paired_ratio(seconds: Sequence[float], baseline_seconds: Sequence[float]) -> PairedRatio:
    """Returns the speed of a candidate relative to a baseline that took turns with it: above 1 the candidate is faster.

    The n-th samples of both are from the same round, so a drift of the machine cancels in their ratio. The ratio is the
    geometric mean over the rounds. The interval is Student's for the mean of the ratios' logarithms, which are assumed
    to be independent and normally distributed.

    A round in which only one of the two was timed, after an interruption, does not count. A single round has no spread:
    its interval is from 0 to infinity. Raises ValueError if there is no round.
    """
    logs = [log(baseline / own) for own, baseline in zip(seconds, baseline_seconds, strict=False)]
    if not logs:
        raise ValueError("a paired ratio needs a round in which both were timed")
    if len(logs) == 1:
        return PairedRatio(exp(logs[0]), 0.0, inf)
    mean, margin = fmean(logs), t_quantile(len(logs) - 1) * stdev(logs) / sqrt(len(logs))
    return PairedRatio(exp(mean), exp(mean - margin), exp(mean + margin))


def t_quantile(freedom: int) -> float:
    """Returns the 97.5 % quantile of Student's t distribution with `freedom` >= 1 degrees of freedom, to three digits.

    Above 30 it uses the expansion around the normal quantile in powers of 1 / freedom (Abramowitz and Stegun, 26.7.5).
    """
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
