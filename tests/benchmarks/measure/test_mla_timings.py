"""One token through one variant is timed; a variant that does not fit says so; outputs that differ are a failure."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest
import torch

import zoo
from benchmarks.__main__ import app
from benchmarks.commands.mla import tables
from benchmarks.measure import devices, mla, timing
from benchmarks.measure.mla import (
    ABSORBED,
    EXPANDED,
    LATENT,
    ExpandedAttention,
    MLAConfig,
    Outcome,
    failures,
    rows,
    run,
    too_large,
    variants,
)
from benchmarks.measure.timing import Samples
from zoo import MLA
from zoo.cli.runner import exit_code
from zoo.cli.tables import Format

SPEC, DIM = next(node for node in zoo.spec("deepseek-v3", tiny=True).walk() if isinstance(node, MLA)), 64
VARIANTS = [EXPANDED, LATENT, ABSORBED]


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run takes one second."""
    ticks = count()
    measure = timing.measure
    monkeypatch.setattr(mla, "measure", lambda *a, **k: measure(*a, **k | {"clock": lambda: float(next(ticks))}))


def measured(config: MLAConfig) -> list[dict[str, Any]]:
    outcomes, samples = list[Outcome](), Samples()
    run(SPEC, DIM, config, outcomes, samples)
    return rows(SPEC, DIM, config, outcomes, samples)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_variant_is_measured_at_every_context_and_equal(dtype: torch.dtype) -> None:
    found = measured(MLAConfig([1, 2, 40], dtype, repeat=5))
    assert [(row["context"], row["variant"]) for row in found] == [
        (c, variant) for c in (1, 2, 40) for variant in VARIANTS
    ]
    assert failures(found) == []
    for row in found:
        assert row["allocated_bytes"] == row["kv_bytes"] == row["context"] * row["kv_bytes_per_token"]
        assert len(row["decode_seconds"]) == 5
        assert (row["decode_s"], row["against_absorbed"], row["too_large"]) == (1.0, 1.0, None)


def test_what_is_timed_is_one_token_after_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[type, tuple[int, ...], int]] = []

    def measure(tasks: list[timing.Task], samples: Samples, **_: object) -> None:
        hook = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, args: (
                seen.append((type(module), tuple(args[0].shape), len(next(iter(args[1].views.values())).keys)))
                if hasattr(module, "kv_up") or isinstance(module, ExpandedAttention)
                else None
            )
        )
        for task in tasks:
            step = task.prepare()
            assert len(seen) == len(samples)
            step()
            samples[task.name] = [1.0]
        hook.remove()

    monkeypatch.setattr(mla, "measure", measure)
    measured(MLAConfig([7]))
    assert [shape for _, shape, _ in seen] == [(1, 1, DIM)] * 3
    assert [keys for *_, keys in seen] == [7] * 3
    assert seen[0][0] is ExpandedAttention


def test_a_variant_that_does_not_fit_beside_the_smaller_ones_is_left_out() -> None:
    specs, config = variants(SPEC), MLAConfig([1000])
    kept = {variant: config.kv_bytes(spec, 1000) for variant, spec in specs.items()}
    everything = sum(kept.values()) + 4 * mla.scratch_elements(LATENT, SPEC, 1000)
    assert too_large(specs, 1000, config, everything) == too_large(specs, 1000, config, None) == {}
    assert list(too_large(specs, 1000, config, everything - 1)) == [EXPANDED]
    without = everything - kept[EXPANDED]
    assert list(too_large(specs, 1000, config, without)) == [EXPANDED]
    # Too little for what is expanded at each step, but enough for what is kept expanded.
    assert list(too_large(specs, 1000, config, without - 1)) == [LATENT]
    assert list(too_large(specs, 1000, config, 0)) == [ABSORBED, LATENT, EXPANDED]


def test_a_variant_that_does_not_fit_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mla, "free_memory", lambda _: 3_000_000)
    expanded, latent, absorbed = measured(MLAConfig([4096]))
    assert (expanded["too_large"], latent["too_large"]) == (
        "needs 5.44 MiB, 2.86 MiB free",
        "needs 8.19 MiB, 2.86 MiB free",
    )
    for row in (expanded, latent):
        assert (row["decode_s"], row["decode_seconds"], row["allocated_bytes"], row["difference"]) == (
            None,
            [],
            None,
            None,
        )
    assert absorbed["decode_s"] == 1.0
    named = [{"model": "x", "swap": None, "dropped": None, "tiny": True, **row} for row in (expanded, latent, absorbed)]
    *_, table = tables(named)
    shown = table.text(Format.table)
    assert "latent at 4k needs 8.19 MiB, 2.86 MiB free" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("wrong", [0.5, float("nan")])
def test_an_output_that_differs_fails_the_run(
    wrong: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = ExpandedAttention.forward
    monkeypatch.setattr(ExpandedAttention, "forward", lambda *args: forward(*args) + wrong)
    assert exit_code(app, "benchmarks", ["mla", "--tiny", "--context", "9"]) == 1
    out, err = capsys.readouterr()
    assert "Outputs NOT equal" in out
    assert err.startswith("error: expanded at 9 tokens differs from absorbed by ")
    assert len(err.splitlines()) == 1


def test_bytes_that_differ_from_the_formula_fail_the_run() -> None:
    (row, *_) = measured(MLAConfig([9]))
    assert failures([row | {"allocated_bytes": row["kv_bytes"] + 4}]) != []


@pytest.mark.parametrize(("contexts", "rows"), [(0, 0), (2, 6)])
def test_an_interruption_leaves_what_there_is_and_valid_json(
    contexts: int, rows: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure, left = mla.measure, count(contexts, -1)

    def interrupted(*args: Any, **options: Any) -> None:
        if next(left) == 0:
            raise KeyboardInterrupt
        measure(*args, **options)

    monkeypatch.setattr(mla, "measure", interrupted)
    args = ["mla", "--tiny", "--context", "5", "--context", "6", "--context", "7", "--json", "--repeat", "5"]
    code = exit_code(app, "benchmarks", args)
    document = json.loads(capsys.readouterr().out)
    assert (code, document["complete"]) == (130, False)
    assert len(document["rows"]) == rows


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["qwen3"], 2, "qwen3-0.6b has no MLA; one that has: deepseek-v3"),
        (["deepsek-v3"], 2, "did you mean"),
        (["--dtype", "fp8"], 2, "choose float32, bfloat16 or float16"),
        (["--swap", "MLA(heads=0)"], 2, "heads"),
        (["--context", "0"], 2, "write 4096 or 4k"),
        (["./nowhere"], 3, "neither a folder"),
    ],
)
def test_a_bad_call_is_one_line_and_its_code(args: list[str], code: int, told: str, capsys: Any) -> None:
    assert exit_code(app, "benchmarks", ["mla", *args]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert len(err.splitlines()) == 1


def test_weights_that_do_not_fit_are_never_allocated(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(devices, "free_memory", lambda _: 10**8)
    assert exit_code(app, "benchmarks", ["mla"]) == 3
    assert "need 714 MiB, and 95.4 MiB is free" in capsys.readouterr().err


def test_a_swapped_model_with_mla_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["mla", "--tiny", "--swap", "MLA(heads=2)", "--context", "8", "--json"]
    assert exit_code(app, "benchmarks", args) == 0
    found = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["heads"], row["swap"]) for row in found} == {(2, "MLA(heads=2)")}
