"""Timing: tasks take turns, rounds before the figures settle are not counted, and every sample is kept.

Taking turns (A B C, A B C, ...) spreads a machine's drift over all tasks alike; medians and extremes then say how far a
difference can be trusted. The clock is an argument, so that all of this is tested without waiting, and so that a device
can bring its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, stdev

Clock = Callable[[], float]

WINDOW = 3  # samples under one median while it warms up
AGREEMENT = 0.03  # by which two successive medians may differ once it is warm
MOST_WARMUPS = 10  # rounds; a machine that is never quiet has to be measured as it is
MOST_SECONDS = 120  # of warm-up, after which no round of it begins


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
