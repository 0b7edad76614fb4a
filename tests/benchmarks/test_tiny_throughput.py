"""What is timed is the forwards that the row names, and nothing else."""

from __future__ import annotations

from itertools import count

import pytest
import torch

import zoo
from benchmarks import tiny_throughput as bench
from benchmarks.models import representatives
from benchmarks.timing import Samples, Task, measure
from zoo.architectures import families
from zoo.decoder import Decoder, Model
from zoo.tiny import tiny

SPEC = zoo.spec("llama3", tiny=True)


def forwards(task: Task, model: Model) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Shapes of the tokens that go through the model while a task is prepared, and while it runs."""
    seen: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    run = task.prepare()
    before = len(seen)
    run()
    hook.remove()
    return seen[:before], seen[before:]


def test_prefill_times_one_pass_and_decode_single_tokens_after_it() -> None:
    model = zoo.build(SPEC)
    prefill, decode = bench._tasks("x", model, seed=0)
    assert forwards(prefill, model) == ([], [(1, bench.PREFILL)])
    assert forwards(decode, model) == ([(1, bench.PREFILL)], [(1, 1)] * bench.DECODE)


def test_every_family_runs_in_its_tiny_form(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(bench, "PREFILL", 20)
    monkeypatch.setattr(bench, "DECODE", 2)
    monkeypatch.setattr(bench, "measure", lambda *a, **k: measure(*a, **k | {"clock": lambda: float(next(ticks))}))
    specs, samples = {model.name: tiny(model.spec) for model in representatives([])}, Samples()
    bench.run(specs, seed=0, samples=samples)
    rows = bench.rows(specs, samples)
    assert [row["model"] for row in rows] == list(families())
    for row in rows:
        assert row["prefill_tokens_per_s"] == row["prefill_tokens_per_s_min"] == 20.0  # each run takes one tick
        assert row["decode_tokens_per_s"] == row["decode_tokens_per_s_max"] == 2.0
        assert len(row["prefill_seconds"]) == len(row["decode_seconds"]) == bench.REPETITIONS >= 3
        assert row["decode_us_per_layer"] == 500_000 / row["layers"]


def test_threads_are_as_before_once_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = []

    def interrupted(*_: object, **__: object) -> None:
        inside.append((torch.get_num_threads(), torch.is_inference_mode_enabled()))
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure", interrupted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            bench.run({"x": SPEC}, seed=0, samples=Samples())
        assert inside == [(bench.THREADS, True)]
        assert torch.get_num_threads() == 2
        assert not torch.is_inference_mode_enabled()
    finally:
        torch.set_num_threads(before)


def test_a_model_measured_in_one_way_only_has_no_row() -> None:
    specs: dict[str, Decoder] = {"a": SPEC, "b": SPEC, "c": SPEC}
    samples: Samples = {("a", "prefill"): [1.0], ("a", "decode"): [1.0], ("b", "prefill"): [1.0]}
    assert [row["model"] for row in bench.rows(specs, samples)] == ["a"]
