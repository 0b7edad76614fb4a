"""Timing: tasks take turns, the first rounds are thrown away, and every sample is kept.

Taking turns (A B C, A B C, ...) spreads a machine's drift over all tasks alike; medians and extremes then say how far a
difference can be trusted. The clock is an argument, so that all of this is tested without waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

Clock = Callable[[], float]


@dataclass(frozen=True)
class Task:
    """Something to time. `prepare` is not timed; it returns what is."""

    name: tuple[str, ...]
    prepare: Callable[[], Callable[[], None]]


@dataclass(frozen=True)
class Spread:
    """The middle and the extremes of some samples."""

    median: float
    low: float
    high: float


Samples = dict[tuple[str, ...], list[float]]


def measure(
    tasks: Sequence[Task],
    samples: Samples,
    *,
    warmups: int = 2,
    repetitions: int = 5,
    clock: Clock = time.perf_counter,
    tick: Callable[[], object] = lambda: None,
) -> None:
    """Run every task in each of `warmups` + `repetitions` rounds and append its seconds to `samples`, by its name.

    Seconds of the warm-up rounds are not kept. `samples` is filled as time goes, so it holds what there is when an
    exception, Ctrl-C among them, ends the rounds early. `tick` is called after each run, outside the time taken.
    """
    for turn in range(warmups + repetitions):
        for task in tasks:
            run = task.prepare()
            start = clock()
            run()
            seconds = clock() - start
            if turn >= warmups:
                samples.setdefault(task.name, []).append(seconds)
            tick()


def rate(amount: int, seconds: Sequence[float]) -> Spread:
    """`amount` a second, over samples of the seconds it took."""
    return Spread(amount / median(seconds), amount / max(seconds), amount / min(seconds))
