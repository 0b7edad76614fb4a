"""Observations of a run: its GEMMs are those of the formula, its experts those of the router."""

from __future__ import annotations

import pytest
import torch

import zoo
from benchmarks.measure.environment import CPU, start_memory_meter
from benchmarks.measure.observed import Observed, observe
from benchmarks.measure.runners import Workload, ZooRunner, random_tokens, task
from zoo.core import kernels
from zoo.core.ops import attention
from zoo.model.module import Model

DENSE = ("llama3", "olmo2", "gemma3", "mistral3", "qwen3", "smollm3")


@torch.inference_mode()
def seen(model: Model, work: Workload, tokens: torch.Tensor | None = None, peak: int | None = 0) -> Observed:
    tokens = random_tokens(work, model.spec.vocab, 0, CPU) if tokens is None else tokens
    runner = ZooRunner(model)
    return observe(task(("x",), runner, work, tokens), runner.weight_bytes, lambda: lambda: peak, model)


@pytest.mark.parametrize("kernel", ["blocks", "plain"])
@pytest.mark.parametrize("family", DENSE)
def test_the_gemms_of_a_prefill_are_those_that_the_formula_counts(
    family: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are all FLOPs except those of scores, in which no weight takes part, even if attention uses the same
    function."""
    monkeypatch.setattr(attention, "MIN_MULTIPLY_ADDS", 0)
    model, spec = zoo.build(family, tiny=True), zoo.spec(family, tiny=True)
    parts = spec.flop_breakdown(0, 20, logits=1)
    with kernels.using({"attention prefill": kernel, "linear prefill": "onednn", "linear decode": "onednn"}):
        gemms = seen(model, Workload("prefill", 20)).gemms
    counted = sum(2 * rows * weight.numel() for weight, rows in gemms)
    assert counted == sum(parts.values()) - parts["scores"]


@pytest.mark.parametrize("family", ["gpt-oss", "deepseek-v3", "gemma4-26b-a4b"])
def test_one_token_hits_as_many_experts_as_it_is_routed_to(family: str) -> None:
    model, spec = zoo.build(family, tiny=True), zoo.spec(family, tiny=True)
    hits = seen(model, Workload("decode", 5)).hits
    assert hits == {i: layer.mixture.router.k for i, layer in enumerate(spec.layers) if layer.mixture}
    assert hits


def test_equal_sequences_hit_the_same_experts_and_others_more() -> None:
    model, work = zoo.build("gpt-oss", tiny=True), Workload("decode", 1, batch=6)
    alike = torch.full((6, work.capacity), 7)
    assert set(seen(model, work, alike).hits.values()) == {3}
    assert min(seen(model, work).hits.values()) > 3


def test_the_peak_is_the_weights_and_what_was_allocated_beside_them() -> None:
    model = zoo.build("llama3", tiny=True)
    weights = 4 * model.spec.params()
    assert seen(model, Workload("decode", 1), peak=1000).peak_bytes == weights + 1000
    assert seen(model, Workload("decode", 1), peak=None).peak_bytes is None


@torch.inference_mode()
def test_without_a_model_of_the_zoo_only_memory_is_observed() -> None:
    model, work = zoo.build("gpt-oss", tiny=True), Workload("prefill", 8)
    once = task(("x",), ZooRunner(model), work, random_tokens(work, model.spec.vocab, 0, CPU))
    assert observe(once, 7, lambda: lambda: 1, None) == Observed(peak_bytes=8, hits={}, gemms=[])


def test_hooks_are_gone_afterwards() -> None:
    model = zoo.build("gpt-oss", tiny=True)
    seen(model, Workload("decode", 1))
    assert not any(module._forward_hooks for module in model.modules())


def test_peak_memory_of_a_process_includes_what_was_freed() -> None:
    meter = start_memory_meter(CPU)
    torch.ones(2**24)  # 64 MiB
    peak = meter()
    assert peak is None or peak > 0.9 * 2**26  # the kernel counts pages in lots
