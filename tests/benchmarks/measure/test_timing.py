"""The harness under a clock that only the tasks move: nothing waits, and every figure is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from math import exp, inf, sqrt

import pytest
from scipy import stats

from benchmarks.measure.timing import (
    MAX_WARMUP_ROUNDS,
    MAX_WARMUP_SECONDS,
    Samples,
    Spread,
    Task,
    measure,
    paired_ratio,
    rate,
    settled,
    t_quantile,
)
from tests.benchmarks.fakes import Clock


def task(name: str, clock: Clock, seconds: Iterable[float], log: list[str], preparing: float = 0.0) -> Task:
    """Takes the next of `seconds` each time it runs, and `preparing` seconds before that."""
    left = iter(seconds)

    def prepare() -> Callable[[], None]:
        clock.now += preparing

        def run() -> None:
            log.append(name)
            clock.now += next(left)

        return run

    return Task((name,), prepare)


def test_tasks_take_turns_and_warm_up_rounds_are_kept_apart() -> None:
    clock, log, samples, warmups = Clock(), list[str](), Samples(), Samples()
    tasks = [task("a", clock, [9, 8, 1, 2, 3], log), task("b", clock, [7, 6, 4, 5, 6], log)]
    measure(tasks, samples, warmups=warmups, max_warmups=2, repetitions=3, clock=clock)
    assert log == ["a", "b"] * 5
    assert samples == {("a",): [1, 2, 3], ("b",): [4, 5, 6]}
    assert warmups == {("a",): [9, 8], ("b",): [7, 6]}


def test_warm_up_ends_when_the_slowest_to_settle_has_settled() -> None:
    """b's medians of three are 20, 10, 4 and 4: the sixth sample brings agreement, and a waits for it."""
    clock, samples, warmups = Clock(), Samples(), Samples()
    tasks = [task("a", clock, repeat(1), []), task("b", clock, [40, 20, 10, 4, 4, 4, *[5] * 5], [])]
    measure(tasks, samples, warmups=warmups, clock=clock)
    assert warmups == {("a",): [1] * 6, ("b",): [40, 20, 10, 4, 4, 4]}
    assert samples == {("a",): [1] * 5, ("b",): [5] * 5}


def test_warm_up_of_what_never_settles_is_capped() -> None:
    clock, samples, warmups = Clock(), Samples(), Samples()
    measure([task("a", clock, (0.1 * 2.0**n for n in range(99)), [])], samples, warmups=warmups, clock=clock)
    assert len(warmups["a",]) == MAX_WARMUP_ROUNDS
    assert len(samples["a",]) == 5


@pytest.mark.parametrize(("seconds", "rounds"), [(MAX_WARMUP_SECONDS / 2, 2), (MAX_WARMUP_SECONDS + 1, 1)])
def test_warm_up_of_what_is_slow_ends_in_time(seconds: float, rounds: int) -> None:
    clock, samples, warmups = Clock(), Samples(), Samples()
    measure([task("a", clock, repeat(seconds), [])], samples, warmups=warmups, repetitions=2, clock=clock)
    assert warmups == {("a",): [seconds] * rounds}
    assert samples == {("a",): [seconds] * 2}


@pytest.mark.parametrize(
    ("seconds", "is_so"),
    [
        ([1, 1, 1], False),  # one median only
        ([1, 1, 1, 1], True),
        ([9, 1, 1, 9], True),  # outliers on either side
        ([1.0, 1.0, 1.02, 1.02], True),
        ([1.0, 1.0, 1.04, 1.04], False),
        ([4, 3, 2, 1], False),
    ],
)
def test_settled_is_two_successive_medians_within_three_per_cent(seconds: list[float], is_so: bool) -> None:
    assert settled(seconds) is is_so


def test_preparation_and_the_progress_bar_are_not_timed() -> None:
    clock, samples, ticks = Clock(), Samples(), list[float]()

    def tick() -> None:
        clock.now += 1000
        ticks.append(clock.now)

    measure(
        [task("a", clock, [1, 2, 3], [], preparing=50)], samples, max_warmups=1, repetitions=2, clock=clock, tick=tick
    )
    assert samples == {("a",): [2, 3]}
    assert len(ticks) == 3


def test_the_runs_that_are_expected_grow_with_the_warm_up() -> None:
    clock, expected = Clock(), list[int]()
    tasks = [task("a", clock, [9, 8, 7, 6, 5, *repeat(5, 9)], []), task("b", clock, repeat(1), [])]
    log: list[int] = []
    measure(tasks, Samples(), clock=clock, tick=lambda: log.append(1), expect=expected.append)
    assert expected == [18, 18, 18, 18, 20, 22, 24]
    assert len(log) == expected[-1]


def test_what_was_measured_before_an_interruption_is_kept() -> None:
    clock, samples = Clock(), Samples()

    def seconds() -> Iterator[float]:
        yield from (1, 2, 3)
        raise KeyboardInterrupt

    tasks = [task("a", clock, [1] * 9, []), task("b", clock, seconds(), [])]
    with pytest.raises(KeyboardInterrupt):
        measure(tasks, samples, max_warmups=1, repetitions=5, clock=clock)
    assert samples == {("a",): [1, 1, 1], ("b",): [2, 3]}


def test_a_rate_is_that_of_the_median_with_the_slowest_and_the_fastest() -> None:
    found = rate(60, [2.0, 30.0, 3.0, 1.0, 6.0])
    assert (found.median, found.min, found.max) == (20.0, 2.0, 60.0)
    assert rate(60, [2.0, 4.0]) == Spread(median=20.0, std=pytest.approx(112.5**0.5), min=15.0, max=30.0)
    assert rate(3.0, [1.0]) == Spread(median=3.0, std=0.0, min=3.0, max=3.0)


@pytest.mark.parametrize("freedom", [*range(1, 61), 120, 300])
def test_quantiles_are_those_of_scipy(freedom: int) -> None:
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=6e-4)


def test_a_paired_ratio_is_the_geometric_mean_with_its_interval() -> None:
    """Ratios 1, e and e^2: their logarithms have mean 1 and deviation 1, and t with 2 degrees of freedom is 4.303."""
    found = paired_ratio([1.0, 2.0, 3.0], [1.0, 2.0 * exp(1), 3.0 * exp(2)])
    assert found == pytest.approx((exp(1), exp(1 - 4.303 / sqrt(3)), exp(1 + 4.303 / sqrt(3))))


def test_a_drift_of_the_machine_cancels_in_a_paired_ratio() -> None:
    """The candidate is twice as fast in every round, although the rounds get ten times slower."""
    assert paired_ratio([1.0, 3.0, 10.0], [2.0, 6.0, 20.0]) == pytest.approx((2.0, 2.0, 2.0))


def test_a_round_without_its_pair_does_not_count_and_a_single_round_has_no_interval() -> None:
    assert paired_ratio([1.0, 1.0, 1.0], [2.0, 3.0]) == paired_ratio([1.0, 1.0], [2.0, 3.0])
    assert paired_ratio([1.0], [2.0, 3.0]) == (2.0, 0.0, inf)
    with pytest.raises(ValueError, match="needs a round"):
        paired_ratio([], [1.0])
