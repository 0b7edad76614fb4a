"""Learning rates: the best of a sweep, which is widened where the best lies at its edge."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log2

import pytest

from benchmarks.learning.sweep import MAX_WIDENINGS, Sweep, check_trained, choose_rates, parse_rates
from zoo.errors import CheckFailed, UsageError

RATES = (4e-3, 8e-3, 16e-3)


class Losses:
    """Losses with the optimum of each model at a known rate; beyond `limit` training diverges."""

    def __init__(self, optima: dict[str, float], limit: float = inf) -> None:
        self.optima, self.limit, self.rounds = optima, limit, list[list[tuple[str, float]]]()

    def __call__(self, pairs: Sequence[tuple[str, float]]) -> dict[tuple[str, float], float]:
        self.rounds.append(list(pairs))
        return {
            (model, rate): inf if rate > self.limit else 2 + abs(log2(rate / self.optima[model]))
            for model, rate in pairs
        }


def test_a_best_rate_inside_ends_the_sweep_after_one_round() -> None:
    losses = Losses({"a": 8e-3, "b": 8e-3})
    found = choose_rates(["a", "b"], RATES, losses)
    assert [sweep.best for sweep in found.values()] == [8e-3, 8e-3]
    assert [sweep.at_edge for sweep in found.values()] == [None, None]
    assert len(losses.rounds) == 1


@pytest.mark.parametrize("optimum", [1e-3, 2e-3, 32e-3, 64e-3])
def test_a_best_rate_at_the_edge_widens_the_sweep_of_its_model_alone(optimum: float) -> None:
    losses = Losses({"inside": 8e-3, "outside": optimum})
    found = choose_rates(["inside", "outside"], RATES, losses)
    assert found["outside"].best == optimum
    assert found["outside"].at_edge is None
    assert len(found["inside"].tried) == 3
    assert all(model == "outside" for each in losses.rounds[1:] for model, _ in each)


def test_a_sweep_is_widened_a_few_times_and_then_says_where_its_best_is() -> None:
    found = choose_rates(["a"], RATES, Losses({"a": 1e3}))["a"]
    assert len(found.tried) == 3 + MAX_WIDENINGS
    assert found.at_edge == "highest"
    assert found.best == max(rate for rate, _ in found.tried)


def test_rates_that_diverge_are_the_worst() -> None:
    found = choose_rates(["a"], RATES, Losses({"a": 1.0}, limit=9e-3))["a"]
    assert (found.best, found.at_edge) == (8e-3, None)
    check_trained([("a", found)])


def test_a_pair_without_a_loss_counts_as_diverged() -> None:
    found = choose_rates(["a"], RATES, lambda pairs: {})["a"]
    with pytest.raises(CheckFailed, match=r"a: training failed at every learning rate \(0.0005, .*lower --rates"):
        check_trained([("a", found)])


def test_one_rate_is_widened_too() -> None:
    assert Sweep(((1e-3, 2.0),)).next_rate is not None
    assert choose_rates(["a"], [8e-3], Losses({"a": 16e-3}))["a"].best == 16e-3


@pytest.mark.parametrize(("text", "rates"), [("8e-3,4e-3", (4e-3, 8e-3)), ("0.01", (0.01,)), ("1e-3,1e-3", (1e-3,))])
def test_rates_are_read(text: str, rates: tuple[float, ...]) -> None:
    assert parse_rates(text) == rates


@pytest.mark.parametrize("text", ["", ",", "fast", "0", "-1e-3", "nan", "inf", "1e-3;2e-3"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write learning rates above 0"):
        parse_rates(text)
