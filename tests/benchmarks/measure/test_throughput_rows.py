"""Shares of ceilings, marks and ratios of rows whose times the test sets."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import zoo
from benchmarks.analytic.models import one
from benchmarks.measure import throughput_rows
from benchmarks.measure.benchmark_models import BenchmarkModel
from benchmarks.measure.ceilings import Kernel
from benchmarks.measure.observed import Observed, gemm_key
from benchmarks.measure.runners import (
    COMPILED,
    EAGER,
    IDLE,
    ZOO,
    Candidate,
    Results,
    ThroughputConfig,
    Workload,
)
from benchmarks.measure.throughput_rows import (
    ceiling_rows,
    expected_hits,
    harness_key,
    least_work,
    predicted_hits,
    rows,
)
from tests.benchmarks.fakes import MACHINE
from zoo.cli.tables import Format

PREFILL, DECODE = Workload("prefill", 8, 40, batch=2), Workload("decode", 3, 40, batch=2)
CONFIG = ThroughputConfig((PREFILL, DECODE), dtype=torch.bfloat16)


def candidate(name: str = "qwen3-0.6b", implementation: str = ZOO, mode: str = EAGER) -> Candidate:
    return Candidate(BenchmarkModel(one(name)), implementation, mode, IDLE)


def found(*candidates: Candidate, seconds: tuple[float, ...] = (2.0, 1.0, 4.0)) -> Results:
    """Results of runs that took these seconds, on a machine with 1 GB/s and 10 GFLOPS."""
    made = Results(CONFIG, list(candidates))
    for each in candidates:
        for work in CONFIG.workloads:
            made.samples[each.key(work)] = list(seconds)
            made.warmups[each.key(work)] = [1.0] * 4
            made.observed[each.key(work)] = Observed(peak_bytes=123)
    for kind, amount in (("bandwidth", 10**9), ("matmul", 10**10)):
        kernel = Kernel(kind, "k", torch.bfloat16, amount, lambda: None)
        made.kernels.append(kernel)
        made.samples[kernel.key] = [1.0]
    for work in CONFIG.workloads:
        made.samples[harness_key(work)] = [0.001]
    return made


def by_test(made: Results) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {(row["implementation"], row["mode"], row["phase"]): row for row in rows(made)}


def test_shares_of_the_ceilings_by_hand() -> None:
    """qwen3-0.6b has no window, no experts and a tied head: all weights are read, 2 bytes each; 112 KiB a token of each
    sequence are cached. Decode sees 42, 43 and 44 tokens, prefill 48."""
    spec, each = zoo.spec("qwen3-0.6b"), candidate()
    row = by_test(found(each))
    weights, token = 2 * spec.params(), 112 * 1024
    decode, prefill = row[ZOO, EAGER, "decode"], row[ZOO, EAGER, "prefill"]
    assert decode["weight_bytes_read"] == 3 * weights
    assert prefill["weight_bytes_read"] == weights
    assert decode["kv_bytes_read"] == 2 * token * (42 + 43 + 44)
    assert prefill["kv_bytes_read"] == 2 * token * 48
    assert decode["mbu"] == pytest.approx((3 * weights + 2 * token * 129) / 2.0 / 1e9)
    assert decode["flops"] == 2 * sum(spec.flops(past, 1) for past in (41, 42, 43))
    assert prefill["flops"] == 2 * spec.flops(40, 8, logits=1)
    assert prefill["mfu"] == pytest.approx(prefill["flops"] / 2.0 / 1e10)
    assert decode["ceiling_tokens_per_s"] == pytest.approx(6 / ((3 * weights + 2 * token * 129) / 1e9))
    assert (decode["tokens_per_s"], decode["tokens_per_s_min"], decode["tokens_per_s_max"]) == (3.0, 1.5, 6.0)
    assert (prefill["tokens_per_s"], prefill["overhead"]) == (8.0, 0.0005)
    assert decode["peak_bytes"] == 123


def test_experts_that_were_counted_take_the_place_of_those_expected() -> None:
    spec = zoo.spec("gpt-oss-20b")
    expert = spec.layers[0].ffn.block.expert.params(spec.dim)  # type: ignore[attr-defined]
    work = Workload("decode", 1, batch=4)
    likely = expected_hits(spec.layers[0].ffn.block, 4)
    assert likely == pytest.approx(32 * (1 - (1 - 4 / 32) ** 4))
    guessed, counted = (least_work(spec, work, torch.bfloat16, hits) for hits in ({}, {0: 10.0, 5: 12.0}))
    assert counted.weight_bytes - guessed.weight_bytes == pytest.approx(2 * expert * (22 - 2 * likely))


def test_experts_beside_a_dense_feed_forward_are_counted() -> None:
    spec, work = zoo.spec("gemma4-26b-a4b"), Workload("decode", 1, batch=4)
    likely = 128 * (1 - (1 - 8 / 128) ** 4)
    assert predicted_hits(spec, work) == pytest.approx(likely)
    expert = spec.layers[0].mixture.expert.params(spec.dim)  # type: ignore[union-attr]
    guessed, counted = (least_work(spec, work, torch.bfloat16, hits) for hits in ({}, {0: 10.0}))
    assert counted.weight_bytes - guessed.weight_bytes == pytest.approx(2 * expert * (10 - likely))


def test_gemms_alone_and_the_counted_experts_are_in_the_row() -> None:
    each = candidate("gpt-oss-20b")
    made = found(each)
    made.observed[each.key(DECODE)].hits = {0: 6.0, 1: 8.0}
    made.samples[gemm_key(each.key(PREFILL))] = [1.0, 0.5, 2.0]
    row = by_test(made)
    assert row[ZOO, EAGER, "decode"]["experts_hit"] == 7.0
    assert row[ZOO, EAGER, "decode"]["experts_hit_predicted"] == pytest.approx(32 * (1 - (28 / 32) ** 2))
    assert row[ZOO, EAGER, "prefill"]["gemms_tokens_per_s"] == 16.0
    assert row[ZOO, EAGER, "decode"]["gemms_tokens_per_s"] is None


def test_a_ratio_is_to_the_baseline_as_it_runs_by_default() -> None:
    candidates = [
        *(candidate(mode=mode) for mode in (EAGER, COMPILED)),
        *(candidate(implementation="transformers", mode=mode) for mode in ("sdpa", COMPILED)),
        candidate("gemma3-270m", "transformers", "sdpa"),
    ]
    made = found(*candidates)
    for seconds, each in zip((1.0, 0.5, 2.0, 2.0, 1.0), candidates, strict=True):
        made.samples[each.key(DECODE)] = [seconds]
    ratios = [row["ratio"] for row in rows(made) if row["phase"] == "decode"]
    assert ratios == [2.0, 4.0, None, 1.0, None]


def trained(seconds: float = 2.0) -> Results:
    """One candidate of each implementation, after training steps that took these seconds."""
    work, candidates = Workload("train", 256, batch=8), [candidate(), candidate("qwen3-0.6b", "transformers", "sdpa")]
    made = found(*candidates)
    made.config = ThroughputConfig((work,), dtype=torch.bfloat16)
    for each in candidates:
        made.samples[each.key(work)] = [seconds]
        made.warmups[each.key(work)] = [1.0] * 4
        made.observed[each.key(work)] = Observed(peak_bytes=2**30)
    return made


def test_training_is_compared_with_the_arithmetic_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times the FLOPs of a forward pass with all logits, at 10 GFLOPS; weights in a cache change nothing."""
    monkeypatch.setattr(throughput_rows, "last_cache", lambda device: 2**60)
    flops = 3 * 8 * zoo.spec("qwen3-0.6b").flops(0, 256)
    row, baseline = rows(trained(flops / 1e9))
    assert (row["test"], row["phase"], row["flops"]) == ("train 8x256", "train", flops)
    assert row["tokens_per_s"] == pytest.approx(8 * 256 * 1e9 / flops)
    assert row["mfu"] == pytest.approx(0.1)
    assert row["ceiling_tokens_per_s"] == pytest.approx(8 * 256 * 1e10 / flops)
    assert row["mbu"] is row["weight_bytes_read"] is row["kv_bytes_read"] is row["gemms_tokens_per_s"] is None
    assert (row["ratio"], baseline["ratio"]) == (1.0, None)
    assert row["marks"] == []


def test_tables_of_training_say_what_a_step_is_and_nothing_of_passes() -> None:
    made = trained(1e4)
    speeds, limits, _ = throughput_rows.tables(rows(made), ceiling_rows(made), MACHINE)
    for table in (speeds, limits):
        text = " ".join(table.text(Format.table).split())
        assert not re.search(r"\b(pp|tg|MBU|GEMMs|cache)\b", text)
        assert max(map(len, table.text(Format.table).splitlines())) <= 80
    assert "forward, backward and AdamW" in " ".join(speeds.legend)
    assert "one forward, two backward" in " ".join(limits.legend)


def marks(made: Results) -> set[str]:
    return {mark for row in rows(made) for mark in row["marks"]}


def test_each_mark_has_its_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    each = candidate()
    monkeypatch.setattr(throughput_rows, "last_cache", lambda device: None)
    assert marks(found(each, seconds=(60.0,))) == set()
    assert marks(found(each, seconds=(1e-3,))) == {"above_bandwidth", "above_matmul_rate"}
    faster = found(each, seconds=(60.0,))
    faster.samples[gemm_key(each.key(PREFILL))] = [61.0]
    assert marks(faster) == {"above_gemms"}
    monkeypatch.setattr(throughput_rows, "last_cache", lambda device: 2 * zoo.spec("qwen3-0.6b").params() + 1)
    assert marks(found(each, seconds=(60.0,))) == {"weights_in_cache"}
    monkeypatch.setattr(throughput_rows, "last_cache", lambda device: 2**20)
    restless = found(each, seconds=(60.0,))
    restless.warmups[each.key(DECODE)] = [4.0, 3.0, 2.0, 1.0]
    assert marks(restless) == {"not_settled"}


def test_a_row_for_what_was_timed_before_an_interruption_and_no_ceiling_before_both_are_measured() -> None:
    each = candidate()
    made = found(each)
    for key in (each.key(DECODE), made.kernels[0].key):
        del made.samples[key]
    del made.warmups[each.key(DECODE)]
    (row,) = rows(made)
    assert row["phase"] == "prefill"
    assert row["ceiling_tokens_per_s"] is row["mbu"] is row["mfu"] is None
    assert row["marks"] == []


def test_rows_of_an_interrupted_warm_up_are_marked() -> None:
    each = candidate()
    made = found(each)
    made.samples.clear()
    made.warmups[each.key(PREFILL)] = [2.0, 4.0]
    shown = {row["phase"]: row for row in rows(made)}
    assert shown["prefill"]["seconds"] == [2.0, 4.0]
    assert {row["warmups"] for row in shown.values()} == {0}
    assert all("warming_up" in row["marks"] for row in shown.values())
    legend = throughput_rows.speeds(list(shown.values()), MACHINE).legend
    assert any("2 to 4 repetitions of the warm-up, which was interrupted" in line for line in legend)


def test_tables_fit_80_columns_with_the_longest_names_and_two_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput_rows, "last_cache", lambda device: 2**60)
    candidates = [candidate(name) for name in ("mistral-small-3.1-24b", "deepseek-v3-671b")]
    candidates += [candidate("mistral-small-3.1-24b", "transformers", "sdpa")]
    made = found(*candidates, seconds=(0.3, 0.9))
    made.samples |= {kernel.key: [1e-3] for kernel in made.kernels}
    for each in candidates:
        made.samples[gemm_key(each.key(PREFILL))] = [1.0]
        made.warmups[each.key(DECODE)] = [4.0, 3.0, 2.0, 1.0]
        made.observed[each.key(DECODE)].peak_bytes = 90 * 2**30
    made.config = deep = ThroughputConfig((PREFILL, Workload("decode", 128, 131072)), dtype=torch.bfloat16)
    made.samples |= {each.key(deep.workloads[1]): [100.0] for each in candidates}
    made.warmups |= {each.key(deep.workloads[1]): [4.0, 3.0, 2.0, 1.0] for each in candidates}
    shown = list(throughput_rows.tables(rows(made), ceiling_rows(made), MACHINE))
    assert len(shown) == 3
    for table in shown:
        text = table.text(Format.table)
        assert max(map(len, text.splitlines())) <= 80, text
        legend = " ".join(table.legend)
        for header in {column.header for column in table.columns} - {"model", "test", "by", "tokens/s", ""}:
            assert header in legend or header in ("std", "min-max", "ceiling", "kernel", "dtype", "median"), header
