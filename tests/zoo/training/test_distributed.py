"""Several processes train as one does: losses, checkpoints, evaluation and samples, on gloo here and on nccl."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from tests.exact import assert_as_near, assert_equal
from tests.ranks import in_ranks
from zoo.architectures import families
from zoo.core import processes
from zoo.errors import UsageError
from zoo.model.module import Model
from zoo.training import distributed, losses
from zoo.training.checkpoints import read_state, read_tensors, write_checkpoint
from zoo.training.loop import Trainer, TrainingConfig, evaluate
from zoo.training.losses import IGNORED, Batch

VOCAB, ROWS, CONTEXT, STEPS, CUT = 64, 4, 16, 20, 10
ROUNDING = 1e-13  # of a gradient, whose larger elements here are 1e-3 and above


def batch(step: int, rows: int = ROWS) -> Batch:
    """Rows of which some targets are not scored, and not equally many in each."""
    tokens = torch.randint(VOCAB, (rows, CONTEXT + 1), generator=torch.Generator().manual_seed(step))
    targets = tokens[:, 1:].clone()
    targets[0, : 3 + step % 5] = IGNORED
    return Batch(tokens[:, :-1], targets)


def train(
    device: torch.device,
    family: str,
    folder: str,
    micro_batches: int = 1,
    steps: int = STEPS,
    start: str | None = None,
    recompute: bool = False,
    autocast: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a tiny model, in as many processes as there are, until `steps`: with a checkpoint after step CUT, or from
    one. The figures of all that it did."""
    spec = replace(zoo.spec(family, tiny=True), vocab=VOCAB)
    dtype = torch.float32 if autocast else torch.float64

    def build() -> Model:
        return zoo.build(spec, dtype=dtype, seed=seed)

    model = build().to(device) if processes.ranks() == 1 else distributed.sharded(spec, device, build, dtype)
    model.activation_checkpointing = recompute
    config = TrainingConfig(STEPS, 3e-3, batch=ROWS, context=CONTEXT, accumulate=micro_batches, autocast=autocast)
    trainer = Trainer(model, config)
    if start is None:
        trainer.rehearse(batch(99))
        evaluate(model, [batch(7)])
        trainer = Trainer(model, config)  # as the command makes one after it has timed a step and an evaluation
    else:
        trainer.restore(read_state(Path(start))["step"], *read_tensors(Path(start)))
    results = []
    while trainer.step < steps:
        results.append(trainer.train_step(batch(trainer.step)))
        if trainer.step == CUT and start is None:
            evaluate(model, [batch(7)])  # leaves nothing behind that a checkpoint would see
            tensors = trainer.tensors()
            if processes.rank() == 0:
                write_checkpoint(Path(folder), CUT, *tensors, {})
    found = evaluate(model, [batch(100), batch(101, rows=3), batch(102, rows=1)])  # fewer rows than ranks, too
    whole, (_, moments) = distributed.whole_model(model), trainer.tensors()
    return {
        "loss": [result.loss for result in results],
        "balance": [result.balance_loss for result in results],
        "norm": [result.grad_norm for result in results],
        "evaluation": list(found),
        "sample": model.generate(batch(0).inputs[:1, :4].to(device), 8, temperature=0.8, seed=0).tolist(),
        "sums": whole and dict(weighted_sums(whole, moments)),
    }


def weighted_sums(whole: Model, moments: dict[str, Tensor]) -> Iterator[tuple[str, float]]:
    """(name, sum) of each parameter. Elements with a gradient of rounding errors alone, which Adam makes steps of any
    direction of, count for little: a key's bias that is not rotated has no other, since it moves all scores of a query
    alike."""
    for name, parameter in whole.named_parameters():
        value = parameter.detach().double()
        if (square := moments.get(f"{name}.exp_avg_sq")) is not None:
            gradient = square.double().sqrt()
            value = torch.where(gradient == 0, value, value * gradient / (gradient + ROUNDING))
        yield name, float(value.sum())


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """What two trainings found, the first of which may have begun later."""
    later = -len(found["loss"])
    for figure in ("loss", "balance", "norm"):
        assert_near(found[figure], expected[figure][later:], figure)
    assert_near(found["evaluation"], expected["evaluation"], "evaluation")
    assert found["sample"] == expected["sample"]
    if found["sums"] is not None:
        assert found["sums"].keys() == expected["sums"].keys()
        for name, value in found["sums"].items():
            assert_near(value, expected["sums"][name], name)


def assert_near(value: Any, expected: Any, what: str) -> None:
    assert_equal(torch.tensor(value, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64), what)


def everything(device: torch.device, folder: str, family: str) -> list[dict[str, Any]]:
    """In each rank: all steps; those after the checkpoint of one process; the first ones with layers recomputed."""
    start = f"{folder}/1/step-{CUT:08}"
    return [
        train(device, family, f"{folder}/2"),
        train(device, family, "", start=start),
        train(device, family, "", steps=CUT - 1, recompute=True),
    ]


def check(folder: Path, family: str, device: str = "cpu") -> None:
    """Two processes against one that computes a step in two micro-batches, and each from the other's checkpoint."""
    one = train(torch.device(device), family, f"{folder}/1", micro_batches=2)
    few = train(torch.device(device), family, "", micro_batches=2, steps=CUT - 1)
    first, second = in_ranks(2, everything, str(folder), family, device=device)
    for found, expected in zip((*first, *second), (one, one, few) * 2, strict=True):
        assert_same(found, expected)
    assert [len(found["loss"]) for found in first] == [STEPS, STEPS - CUT, CUT - 1]
    assert first[0]["sums"]
    assert second[0]["sums"] is None  # the first process alone holds the whole model
    back = train(torch.device(device), family, "", micro_batches=2, start=f"{folder}/2/step-{CUT:08}")
    assert_same(back, one)


@pytest.mark.slow
@pytest.mark.parametrize("family", families())
def test_two_processes_train_as_one_and_read_each_others_checkpoints(family, tmp_path) -> None:
    check(tmp_path, family)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("family", families())
def test_two_cards_train_as_one(family, tmp_path) -> None:
    check(tmp_path, family, "cuda")


def test_ten_steps_in_two_processes_and_their_checkpoint_in_one(tmp_path) -> None:
    family = "deepseek-v3"  # a router with a bias, which is sharded and has no gradient
    one = train(torch.device("cpu"), family, str(tmp_path / "1"), micro_batches=2, steps=CUT)
    for found in in_ranks(2, train, family, str(tmp_path / "2"), 1, CUT):
        assert_same(found, one)
    (one_file, two_file) = (read_tensors(tmp_path / n / f"step-{CUT:08}") for n in "12")
    for expected, found in zip(one_file, two_file, strict=True):
        assert {n: (v.shape, v.dtype) for n, v in found.items()} == {n: (v.shape, v.dtype) for n, v in expected.items()}
    for name, value in two_file[0].items():
        assert_equal(value, one_file[0][name], name)


def autocast_losses(device: torch.device, recompute: bool, autocast: bool = True) -> list[list[float]]:
    """The losses of the first steps of each of three seeds."""
    seeds = (train(device, "qwen3", "", 1, CUT - 1, None, recompute, autocast, seed) for seed in range(3))
    return [found["loss"] for found in seeds]


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_bfloat16_is_as_near_to_float64_in_two_processes_as_in_one(recompute) -> None:
    cpu = torch.device("cpu")
    one, exact = (autocast_losses(cpu, recompute, autocast) for autocast in (True, False))
    for found in in_ranks(2, autocast_losses, recompute):
        narrow = ([torch.tensor(losses, dtype=torch.bfloat16) for losses in seeds] for seeds in (found, one))
        assert_as_near(*narrow, [torch.tensor(losses, dtype=torch.float64) for losses in exact])


@pytest.mark.parametrize(("rows", "count"), [(4, 2), (5, 2), (1, 3), (7, 4)])
def test_rows_are_shared_out_and_each_target_is_scored_once(monkeypatch, rows, count) -> None:
    whole = batch(0, rows)
    monkeypatch.setattr(losses, "ranks", lambda: count)
    parts = []
    for rank in range(count):
        monkeypatch.setattr(losses, "rank", lambda rank=rank: rank)
        parts.append(whole.own_rows())
    assert len({part.inputs.shape for part in parts}) == 1
    assert torch.equal(torch.cat([part.inputs for part in parts])[:rows], whole.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts])[:rows], whole.targets)
    assert sum(int(part.scored()) for part in parts) == int(whole.scored())


@pytest.mark.parametrize(
    ("count", "config", "says"),
    [
        (3, {}, "a batch of 4 sequences cannot be divided among 3 processes$"),
        (2, {"accumulate": 3}, "a batch of 4 sequences cannot be divided among 2 processes in 3 micro-batches each$"),
        (8, {}, "4 sequences cannot be divided among 8"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch, count, config, says) -> None:
    model = zoo.build(zoo.spec("qwen3", tiny=True))
    monkeypatch.setattr(distributed, "ranks", lambda: count)
    with pytest.raises(UsageError, match="must be sharded"):
        Trainer(model, TrainingConfig(STEPS, 3e-3, batch=ROWS, context=CONTEXT, **config))
    model.reshard = None  # as FSDP's models have
    with pytest.raises(UsageError, match=says):
        Trainer(model, TrainingConfig(STEPS, 3e-3, batch=ROWS, context=CONTEXT, **config))
