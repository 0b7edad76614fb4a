"""Steps that fit into a time, and the FLOPs that training is measured by."""

import pytest
import torch

import zoo
from zoo.errors import UsageError
from zoo.training.run import EVALUATIONS, matmul_rate, steps_within, training_flops_per_token


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


def test_training_computes_three_times_the_forward_pass() -> None:
    spec = zoo.spec("qwen3", tiny=True)
    assert training_flops_per_token(spec, 64) * 64 == pytest.approx(3 * spec.flops(0, 64))
    assert matmul_rate(torch.device("cpu"), torch.float32) > 1e8
