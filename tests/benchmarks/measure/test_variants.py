"""Variants of one layer's attention: the steps that are timed, outputs that must be equal, variants that do not fit,
and calls that are wrong or interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch

from benchmarks.__main__ import app
from benchmarks.analytic.models import about, one
from benchmarks.commands.blocks import of_model, tables
from benchmarks.measure import environment, mla, sparse, timing, variants
from benchmarks.measure.blocks import DECODE, PREFILL
from benchmarks.measure.mla import ABSORBED, EXPANDED, LATENT, ExpandedAttention, MLAVariants, scratch_elements
from benchmarks.measure.sparse import FULL, SPARSE, SparseVariants, attention_flops, crossover
from benchmarks.measure.timing import Samples
from benchmarks.measure.variants import Comparison, VariantsConfig, run
from tests.benchmarks.fakes import time_alike
from tests.models import has_compiler
from zoo.cli.runner import exit_code
from zoo.cli.tables import Format

compiles = pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
TINY_MLA, TINY_SPARSE = ["--variants", "mla", "--tiny"], ["--variants", "sparse", "--tiny", "--repeat", "1"]


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    time_alike(monkeypatch, variants)


def tiny(kind: type[Comparison], config: VariantsConfig) -> Any:
    return of_model(kind, one(kind.MODEL), True, config)


def measured(kind: type[Comparison], config: VariantsConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    run(tiny(kind, config), rows)
    assert kind.failures(rows) == []
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_variant_of_mla_is_measured_at_every_context_and_equal(dtype: torch.dtype) -> None:
    found = measured(MLAVariants, VariantsConfig([1, 2, 40], dtype=dtype))
    names = (EXPANDED, LATENT, ABSORBED)
    assert [(row["context"], row["variant"]) for row in found] == [(c, name) for c in (1, 2, 40) for name in names]
    for row in found:
        assert row["allocated_bytes"] == row["kv_bytes"] == row["context"] * row["kv_bytes_per_token"]
        assert len(row["decode_seconds"]) == 5
        assert (row["decode_s"], row["against_absorbed"], row["too_large"]) == (1.0, 1.0, None)


@compiles
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_full_and_sparse_attention_are_measured_in_every_phase_and_agree(dtype: torch.dtype) -> None:
    found = measured(SparseVariants, VariantsConfig([40], (DECODE, PREFILL), dtype))
    assert [(row["phase"], row["variant"]) for row in found] == [
        (phase, variant) for phase in (DECODE, PREFILL) for variant in (FULL, SPARSE)
    ]
    for row in found:
        assert len(row["attention_seconds"]) == 5
        assert (row["attention_s"], row["gain"]) == (1.0, 1.0)
        ratio = row["predicted_gain"]
        assert row["reached"] == (None if row["variant"] == FULL else pytest.approx(1 / ratio))


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

    monkeypatch.setattr(variants, "measure", measure)
    measured(MLAVariants, VariantsConfig([7]))
    assert [(shape[:2], keys) for _, shape, keys in seen] == [((1, 1), 7)] * 3
    assert seen[0][0] is ExpandedAttention


def test_flops_of_sparse_attention_are_those_of_scores_and_indexer() -> None:
    """DeepSeek-V3.2: 128 heads of 512 + 64 elements for scores and 512 for values; 64 index heads of 128 and one weight
    each. From the crossover on, sparse is cheaper."""
    released = of_model(SparseVariants, one(SparseVariants.MODEL), False, VariantsConfig([4096]))
    spec, dim = released.spec, released.dim
    flops = attention_flops(spec, dim, 8191, 1)
    assert flops[FULL] == 2 * 8192 * 128 * (576 + 512)
    assert flops[SPARSE] == 2 * 2048 * 128 * (576 + 512) + 2 * 8192 * 64 * 129
    at = crossover(spec, dim)
    assert at is not None
    below, above = (attention_flops(spec, dim, stored - 1, 1) for stored in (at - 1, at))
    assert below[SPARSE] >= below[FULL]
    assert above[SPARSE] < above[FULL]
    toy = tiny(SparseVariants, VariantsConfig([40]))
    assert crossover(toy.spec, toy.dim) is None  # a toy's index heads are no cheaper than attention's


def test_a_variant_that_does_not_fit_beside_the_smaller_ones_is_left_out() -> None:
    comparison = tiny(MLAVariants, VariantsConfig([1000]))
    kept = {variant: comparison.kv_bytes(variant, 1000) for variant in MLAVariants.VARIANTS}
    everything = sum(kept.values()) + 4 * scratch_elements(LATENT, comparison.spec, 1000)
    without = everything - kept[EXPANDED]
    for free, refused in {
        None: [],
        everything: [],
        everything - 1: [EXPANDED],
        without: [EXPANDED],
        without - 1: [LATENT],  # too little for what is expanded at each step, but enough for what is kept expanded
        0: [ABSORBED, LATENT, EXPANDED],
    }.items():
        assert list(comparison.too_large(1000, free)) == refused, free


def test_a_variant_that_does_not_fit_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mla, "free_memory", lambda _: 3_000_000)
    rows = measured(MLAVariants, VariantsConfig([4096]))
    *others, absorbed = rows
    assert [row["too_large"] for row in others] == ["needs 5.44 MiB, 2.86 MiB free", "needs 8.19 MiB, 2.86 MiB free"]
    for row in others:
        assert not any(row[name] for name in ("decode_s", "decode_seconds", "allocated_bytes", "difference"))
    assert absorbed["decode_s"] == 1.0
    *_, table = tables([{**about(one("deepseek-v3")), "tiny": True, **row} for row in rows])
    shown = table.text(Format.table)
    assert "latent at 4k needs 8.19 MiB, 2.86 MiB free" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("wrong", [0.5, float("nan")])
def test_an_output_that_differs_from_absorbed_fails_the_run(
    wrong: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = ExpandedAttention.forward
    monkeypatch.setattr(ExpandedAttention, "forward", lambda *args: forward(*args) + wrong)
    assert exit_code(app, "benchmarks", ["blocks", *TINY_MLA, "--context", "9"]) == 1
    out, err = capsys.readouterr()
    assert "Outputs are NOT equal" in out
    assert err.startswith("error: expanded at 9 tokens differs from absorbed by ")
    assert len(err.splitlines()) == 1


@compiles
@pytest.mark.parametrize("damage", [torch.logical_not, lambda mask: mask * float("nan")], ids=["others", "NaN"])
def test_a_sparse_output_that_differs_fails_the_run(
    damage: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sees = sparse.sees
    monkeypatch.setattr(sparse, "sees", lambda *args: damage(sees(*args)))
    assert exit_code(app, "benchmarks", ["blocks", *TINY_SPARSE, "--context", "30"]) == 1
    out, err = capsys.readouterr()
    assert "Outputs are NOT equal" in out
    assert err.startswith("error: sparse in decode at 30 tokens differs from attention under its mask by ")
    assert len(err.splitlines()) == 1


def test_bytes_that_differ_from_the_formula_fail_the_run() -> None:
    (row, *_) = measured(MLAVariants, VariantsConfig([9]))
    assert MLAVariants.failures([row | {"allocated_bytes": row["kv_bytes"] + 4}]) != []


@pytest.mark.parametrize(
    ("args", "contexts", "rows"),
    [(TINY_MLA, 0, 0), (TINY_MLA, 2, 6), (TINY_SPARSE, 0, 0), pytest.param(TINY_SPARSE, 1, 2, marks=compiles)],
)
def test_an_interruption_leaves_what_there_is_and_valid_json(
    args: list[str], contexts: int, rows: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure, left = variants.measure, count(contexts, -1)

    def interrupted(*args: Any, **options: Any) -> None:
        if next(left) == 0:
            raise KeyboardInterrupt
        measure(*args, **options)

    monkeypatch.setattr(variants, "measure", interrupted)
    several = [word for tokens in ("30", "40", "50") for word in ("--context", tokens)]
    code = exit_code(app, "benchmarks", ["blocks", *args, *several, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (code, document["complete"]) == (130, False)
    assert len(document["rows"]) == rows


def test_weights_that_do_not_fit_are_never_allocated(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(environment, "free_memory", lambda _: 10**8)
    assert exit_code(app, "benchmarks", ["blocks", "--variants", "mla"]) == 3
    assert "need 714 MiB, and 95.4 MiB is free" in capsys.readouterr().err
