"""Timed training steps: both implementations start from equal values, own their weights, and compute the counted
FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import zoo
from benchmarks.analytic.models import one
from benchmarks.measure import baseline as module
from benchmarks.measure.baseline import build_baseline
from benchmarks.measure.benchmark_models import BenchmarkModel, Variant
from benchmarks.measure.environment import CPU
from benchmarks.measure.runners import EAGER, Candidate, ThroughputConfig, Workload, random_tokens, task
from benchmarks.measure.training import (
    TrainingRunner,
    baseline_runner,
    training_bytes,
    training_candidates,
    training_flops,
)
from tests.presets import split
from zoo.architectures import families
from zoo.errors import CheckFailed
from zoo.model.module import Model

WORK = Workload("train", 20, batch=2)
DENSE = ("llama3", "olmo2", "gemma3", "mistral3", "qwen3", "smollm3")


def runner(model: Model) -> TrainingRunner:
    return TrainingRunner.of(model, model)


def tokens(model: Model) -> torch.Tensor:
    return random_tokens(WORK, model.spec.vocab, 0, CPU)


def values(model: torch.nn.Module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


def candidates(
    family: str, dtype: torch.dtype = torch.float32, modes: Sequence[str] = (EAGER,), baseline: bool = True
) -> list[Candidate]:
    config = ThroughputConfig((WORK,), dtype, modes=modes, baseline=baseline)
    model = Variant(tiny=True).of(BenchmarkModel(one(family)))
    return list(training_candidates(model, model.build(CPU, dtype, 0), config))


def test_a_step_changes_every_weight_and_leaves_no_gradients() -> None:
    """This also holds inside inference mode, in which everything else is timed."""
    model = zoo.build("llama3", tiny=True)
    trained, before = runner(model), values(model)
    with torch.inference_mode():
        task(("x",), trained, WORK, tokens(model)).prepare()()
    assert not any(torch.equal(old, new) for old, new in zip(before, values(model), strict=True))
    assert all(weight.grad is None for weight in model.parameters())
    assert model.training
    assert len(trained.optimizer.state) == len(before)
    trained.release()
    assert not trained.optimizer.state


@pytest.mark.parametrize("family", split(families(), ["qwen3", "gpt-oss", "gpt2"]))
def test_both_implementations_start_with_the_same_loss_and_gradients(family: str) -> None:
    """Both implementations agree, and computing the gradients changes nothing."""
    model = zoo.build(family, tiny=True)
    before = values(model)
    reference = build_baseline(model, CPU)
    theirs = baseline_runner(reference, compiled=False)
    expected, found = runner(model).gradients(tokens(model)), theirs.gradients(tokens(model))
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.norm == pytest.approx(expected.norm, rel=1e-5)
    assert expected.norm > 0
    assert all(torch.equal(old, new) for old, new in zip(before, values(model), strict=True))


@pytest.mark.parametrize("family", ["gemma3", "gpt-oss", "deepseek-v3"])
def test_candidates_own_their_weights(family: str) -> None:
    """A step of one candidate does not change the others."""
    ours, theirs = candidates(family)
    before = values(theirs.runner.model)
    ours.task(WORK, ThroughputConfig((WORK,))).prepare()()
    assert all(torch.equal(old, new) for old, new in zip(before, values(theirs.runner.model), strict=True))
    held = [{each.untyped_storage().data_ptr() for each in c.runner.model.parameters()} for c in (ours, theirs)]
    assert not held[0] & held[1]


def _scaled_norm(reference: Any) -> None:
    with torch.no_grad():  # not in place: the tensor is the zoo's too
        reference.model.norm.weight = torch.nn.Parameter(reference.model.norm.weight * 1.01)


def _scaled_gradient(reference: Any) -> None:
    reference.model.norm.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 1.01,))


@pytest.mark.parametrize(("broken", "what"), [(_scaled_norm, "loss"), (_scaled_gradient, "norm of the gradients")])
@pytest.mark.parametrize("family", ["llama3", "gpt-oss"])
def test_another_loss_or_gradient_is_refused_but_for_experts_in_16_bits(
    family: str, broken: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*args: Any) -> Any:
        reference = build_baseline(*args)
        broken(reference)
        return reference

    monkeypatch.setattr(module, "build_baseline", build)
    with pytest.raises(CheckFailed, match=rf"in transformers, the {what} is .* nothing was measured"):
        candidates(family)
    if family == "gpt-oss":
        assert len(candidates(family, torch.bfloat16)) == 2


@pytest.mark.parametrize("family", DENSE)
def test_the_matrix_products_of_a_step_are_three_times_those_of_a_forward_pass(family: str) -> None:
    """The comparison uses torch's own counter, without the scores, for which a kernel also computes masked pairs."""
    model = zoo.build(family, tiny=True)
    counter = FlopCounterMode(display=False)
    with counter:
        runner(model).gradients(tokens(model))
    products = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if op is torch.ops.aten.mm)
    forward = model.spec.flop_breakdown(0, WORK.tokens)
    assert products == 3 * WORK.batch * (sum(forward.values()) - forward["scores"])
    assert training_flops(model.spec, WORK) == 3 * WORK.batch * sum(forward.values())


@pytest.mark.parametrize("name", ["gemma3-270m", "gpt-oss-20b", "deepseek-v3-671b"])
def test_what_is_needed_covers_gradients_moments_and_activations(name: str) -> None:
    spec, half = zoo.spec(name), torch.bfloat16
    once, twice = (training_bytes(spec, half, WORK, copies) for copies in (1, 2))
    assert once > 4 * 2 * spec.params() + WORK.batch * WORK.tokens * spec.vocab * 10
    assert twice - once == 3 * 2 * spec.params()
    longer = Workload("train", 4 * WORK.tokens, batch=WORK.batch)
    grown = training_bytes(spec, half, longer, 0) - 2 * spec.params()
    activations = training_bytes(spec, half, WORK, 0) - 2 * spec.params()
    assert grown > 4 * activations if name.startswith("gpt-oss") else grown == 4 * activations  # scores: the square
