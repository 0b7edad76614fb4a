"""The main command's measurement: the tiny forms, in two tests, and one line for each model."""

from __future__ import annotations

from math import inf

import pytest
import torch

from benchmarks.analytic.models import one, representatives
from benchmarks.commands import costs
from benchmarks.measure import throughput, timing
from benchmarks.measure.benchmark_models import BenchmarkModel, Variant
from benchmarks.measure.runners import Results
from benchmarks.measure.throughput import TINY_THREADS, build, run, tiny_config
from benchmarks.measure.throughput_rows import rows
from tests.benchmarks.fakes import Ticking, fake_rows
from zoo.architectures import families
from zoo.cli.tables import Format


def test_every_family_runs_in_its_tiny_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "TINY_PREFILL", 20)
    monkeypatch.setattr(throughput, "TINY_DECODE", 2)
    monkeypatch.setattr(throughput, "clock", lambda device: Ticking())
    monkeypatch.setattr(timing, "MAX_WARMUP_SECONDS", inf)  # a round of all families takes more of these seconds
    results = Results(tiny_config(0))
    build([Variant(tiny=True).of(BenchmarkModel(model)) for model in representatives([])], results)
    run(results)
    made = rows(results)
    assert [(row["model"], row["test"]) for row in made] == [
        (family, test) for family in families() for test in ("pp20", "tg2")
    ]
    for row in made:
        assert row["tiny"]
        assert row["layers"] <= 12
        assert row["tokens_per_s"] == row["tokens_per_s_min"] == row["tokens"]  # each run takes a second
        assert row["seconds"] == [1.0] * 5
        assert row["warmups"] == 4


def test_threads_are_as_before_once_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = []

    def interrupted(*_: object, **__: object) -> None:
        inside.append((torch.get_num_threads(), torch.is_inference_mode_enabled()))
        raise KeyboardInterrupt

    monkeypatch.setattr(throughput, "measure", interrupted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(Results(tiny_config(0)))
        assert inside == [(TINY_THREADS, True)]
        assert torch.get_num_threads() == 2
        assert not torch.is_inference_mode_enabled()
    finally:
        torch.set_num_threads(before)


def test_the_table_has_a_line_for_each_model_that_was_timed_in_both_ways() -> None:
    made = fake_rows([BenchmarkModel(one(name), tiny=True) for name in ("qwen3", "llama3")], [2.0])
    text = costs.tiny_throughput_table(made[:3]).text(Format.table)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "qwen3-0.6b 128 128-128 16 16-16 2,232" in lines  # of 28 layers
    assert not any(line.startswith("llama3") for line in lines)


@pytest.mark.parametrize(
    ("prefill", "decode", "told"),
    [
        ([1.0], [1.0], "One repetition after 4 rounds of warm-up"),
        ([1.0] * 5, [1.0] * 5, "Medians of 5 repetitions after 4 rounds"),
        ([1.0] * 2, [1.0], "Medians of 1 to 2 repetitions"),  # interrupted in the middle of a round
    ],
)
def test_the_legend_says_how_often_it_was_measured(prefill: list[float], decode: list[float], told: str) -> None:
    made = fake_rows([BenchmarkModel(one("qwen3"))], prefill)
    made[1]["seconds"] = decode
    assert told in costs.tiny_throughput_table(made).text(Format.table)
