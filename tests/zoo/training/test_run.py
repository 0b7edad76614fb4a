"""Steps that fit into a time, and the FLOPs that training is measured by."""

import time

import pytest
import torch

import zoo
from zoo.errors import UsageError
from zoo.training import run
from zoo.training.run import (
    EVALUATIONS,
    choose_threads,
    matmul_rate,
    steps_within,
    time_steps,
    training_flops_per_token,
)


@pytest.mark.parametrize(
    ("budget", "step", "evaluation", "every"), [(600, 0.1, 2, None), (600, 0.1, 2, 50), (60, 1, 10, None), (3, 1, 1, 7)]
)
def test_steps_and_evaluations_fit_the_time_and_nearly_fill_it(budget, step, evaluation, every) -> None:
    steps, between = steps_within(budget, step, evaluation, every)
    took = steps * step + evaluation * (1 + steps / between)
    assert 0.6 * budget < took <= budget * 1.01
    assert between == (every or between)
    assert every or round(steps / between) <= EVALUATIONS


def test_no_time_for_one_step_is_refused() -> None:
    with pytest.raises(UsageError, match="give more --minutes, or --tokens"):
        steps_within(1.0, 2.0, 0.1, None)


def test_time_is_measured_no_longer_than_the_budget(monkeypatch) -> None:
    steps: list[int] = []

    class Slow:
        device = torch.device("cpu")

        def rehearse(self, batch) -> None:
            steps.append(batch)
            time.sleep(0.02)

    time_steps(Slow(), lambda step: step, budget=0.01)
    assert len(steps) == 2  # one that does not count, and one that exceeds the budget


@pytest.mark.parametrize(("slowdown", "chosen"), [(1.2, 4), (40, 2)])
def test_fewer_threads_only_where_all_are_much_slower(monkeypatch, slowdown, chosen) -> None:
    threads, before = [4], torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: threads.__setitem__(0, number))
    monkeypatch.setattr(run, "seconds", lambda step, device: {1: 1.1, 2: 1.0, 4: slowdown}[threads[0]])
    assert choose_threads() == (chosen, pytest.approx(slowdown if chosen == 2 else 1.0))
    assert threads == [chosen]
    monkeypatch.undo()
    assert torch.get_num_threads() == before


def test_training_computes_three_times_the_forward_pass() -> None:
    spec = zoo.spec("qwen3", tiny=True)
    assert training_flops_per_token(spec, 64) * 64 == pytest.approx(3 * spec.flops(0, 64))
    assert matmul_rate(torch.device("cpu"), torch.float32) > 1e8
