"""The harness under a clock that only the tasks move: nothing waits, and every figure is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from benchmarks.timing import Samples, Spread, Task, measure, rate


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def task(name: str, clock: Clock, seconds: Iterator[float], log: list[str], preparing: float = 0.0) -> Task:
    """Takes the next of `seconds` each time it runs, and `preparing` seconds before that."""

    def prepare() -> Callable[[], None]:
        clock.now += preparing

        def run() -> None:
            log.append(name)
            clock.now += next(seconds)

        return run

    return Task((name,), prepare)


def test_tasks_take_turns_and_warm_up_rounds_are_not_kept() -> None:
    clock, log, samples = Clock(), list[str](), Samples()
    tasks = [task("a", clock, iter([9, 8, 1, 2, 3]), log), task("b", clock, iter([7, 6, 4, 5, 6]), log)]
    measure(tasks, samples, warmups=2, repetitions=3, clock=clock)
    assert log == ["a", "b"] * 5
    assert samples == {("a",): [1, 2, 3], ("b",): [4, 5, 6]}


def test_preparation_and_the_progress_bar_are_not_timed() -> None:
    clock, samples, ticks = Clock(), Samples(), list[float]()

    def tick() -> None:
        clock.now += 1000
        ticks.append(clock.now)

    tasks = [task("a", clock, iter([1, 2, 3]), [], preparing=50)]
    measure(tasks, samples, warmups=1, repetitions=2, clock=clock, tick=tick)
    assert samples == {("a",): [2, 3]}
    assert len(ticks) == 3


def test_what_was_measured_before_an_interruption_is_kept() -> None:
    clock, samples = Clock(), Samples()

    def seconds() -> Iterator[float]:
        yield from (1, 2, 3)
        raise KeyboardInterrupt

    tasks = [task("a", clock, iter([1] * 9), []), task("b", clock, seconds(), [])]
    with pytest.raises(KeyboardInterrupt):
        measure(tasks, samples, warmups=1, repetitions=5, clock=clock)
    assert samples == {("a",): [1, 1, 1], ("b",): [2, 3]}


def test_a_rate_is_that_of_the_median_with_the_slowest_and_the_fastest() -> None:
    assert rate(60, [2.0, 30.0, 3.0, 1.0, 6.0]) == Spread(median=20.0, low=2.0, high=60.0)
    assert rate(60, [2.0, 4.0]) == Spread(median=20.0, low=15.0, high=30.0)
