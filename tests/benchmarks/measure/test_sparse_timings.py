"""Full and sparse attention are timed on the same queries and cache; the sparse output is that of its mask."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from benchmarks.__main__ import app
from benchmarks.measure import sparse, timing
from benchmarks.measure.blocks import DECODE, PREFILL
from benchmarks.measure.sparse import FULL, SPARSE, SparseConfig, attention_flops, crossover, failures, rows, run
from benchmarks.measure.timing import Samples
from tests.models import has_compiler
from zoo import SparseMLA
from zoo.cli.runner import exit_code

SPEC, DIM = next(part for part in zoo.spec("deepseek-v3.2", tiny=True).walk() if isinstance(part, SparseMLA)), 64
RELEASED = zoo.spec("deepseek-v3.2")
compiles = pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run takes one second."""
    ticks = count()
    measure = timing.measure
    monkeypatch.setattr(sparse, "measure", lambda *a, **k: measure(*a, **k | {"clock": lambda: float(next(ticks))}))


def measured(config: SparseConfig) -> list[dict[str, Any]]:
    differences, samples = dict[str, float](), Samples()
    run(SPEC, DIM, config, differences, samples)
    return rows(SPEC, DIM, config, differences, samples)


@compiles
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_both_are_measured_in_every_phase_and_agree(dtype: torch.dtype) -> None:
    found = measured(SparseConfig([40], (DECODE, PREFILL), dtype))
    assert [(row["phase"], row["variant"]) for row in found] == [
        (phase, variant) for phase in (DECODE, PREFILL) for variant in (FULL, SPARSE)
    ]
    assert failures(found) == []
    for row in found:
        assert len(row["attention_seconds"]) == 5
        assert (row["attention_s"], row["gain"]) == (1.0, 1.0)
        ratio = row["predicted_gain"]
        assert row["reached"] == (None if row["variant"] == FULL else pytest.approx(1 / ratio))


def test_flops_are_those_of_scores_and_indexer() -> None:
    """128 heads of 512 + 64 elements for scores and 512 for values; 64 index heads of 128 and one weight each."""
    (spec,) = {layer.mixer for layer in RELEASED.layers}
    assert isinstance(spec, SparseMLA)
    flops = attention_flops(spec, RELEASED.dim, 8191, 1)
    assert flops[FULL] == 2 * 8192 * 128 * (576 + 512)
    assert flops[SPARSE] == 2 * 2048 * 128 * (576 + 512) + 2 * 8192 * 64 * 129


def test_from_the_crossover_on_sparse_is_cheaper() -> None:
    (spec,) = {layer.mixer for layer in RELEASED.layers}
    assert isinstance(spec, SparseMLA)
    at = crossover(spec, RELEASED.dim)
    assert at is not None
    below, above = (attention_flops(spec, RELEASED.dim, stored - 1, 1) for stored in (at - 1, at))
    assert below[SPARSE] >= below[FULL]
    assert above[SPARSE] < above[FULL]
    assert crossover(SPEC, DIM) is None  # a toy's index heads are no cheaper than attention's


@compiles
@pytest.mark.parametrize("damage", [torch.logical_not, lambda mask: mask * float("nan")], ids=["others", "NaN"])
def test_an_output_that_differs_fails_the_run(
    damage: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sees = sparse.sees
    monkeypatch.setattr(sparse, "sees", lambda *args: damage(sees(*args)))
    assert exit_code(app, "benchmarks", ["sparse", "--tiny", "--context", "30", "--repeat", "1"]) == 1
    out, err = capsys.readouterr()
    assert "Outputs NOT equal" in out
    assert err.startswith("error: sparse attention in decode at 30 tokens differs from attention under its mask by ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("complete", [0, pytest.param(1, marks=compiles)])
def test_an_interruption_leaves_what_there_is_and_valid_json(
    complete: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure, left = sparse.measure, count(complete, -1)

    def interrupted(*args: Any, **options: Any) -> None:
        if next(left) == 0:
            raise KeyboardInterrupt
        measure(*args, **options)

    monkeypatch.setattr(sparse, "measure", interrupted)
    args = ["sparse", "--tiny", "--context", "30", "--context", "40", "--json", "--repeat", "1"]
    code = exit_code(app, "benchmarks", args)
    document = json.loads(capsys.readouterr().out)
    assert (code, document["complete"]) == (130, False)
    assert len(document["rows"]) == 2 * complete


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["llama3"], 2, "llama3.2-1b has no sparse attention; one that has: deepseek-v3.2"),
        (["deepsek-v3"], 2, "did you mean"),
        (["--dtype", "fp8"], 2, "choose float32, bfloat16 or float16"),
        (["--context", "2k"], 2, "of at most k=2048 tokens all are chosen"),
        (["./nowhere"], 3, "neither a folder"),
    ],
)
def test_a_bad_call_is_one_line_and_its_code(args: list[str], code: int, told: str, capsys: Any) -> None:
    assert exit_code(app, "benchmarks", ["sparse", *args]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert len(err.splitlines()) == 1
