"""The checks of a built model, and their failures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.presets import distinct, over, representatives, split
from zoo import GLU, GQA, Decoder, Layer, RMSNorm, RoPE, names, pre, spec, swap
from zoo.blocks.mamba2 import Mamba2
from zoo.catalog import build
from zoo.cli import self_check
from zoo.cli.self_check import (
    check_build,
    check_decoding,
    failures,
    require_free_memory,
    tokens_needed,
)
from zoo.core.devices import find_device
from zoo.core.float32 import BOUND
from zoo.core.forward_context import visible
from zoo.costs import Window
from zoo.errors import NotAvailable, UsageError

CPU, FP32 = torch.device("cpu"), torch.float32
BUILT = {"parameters": 100, "formula": 100}
DECODED = {"largest_difference": 1e-15, "bound": BOUND, "cache_bytes": 64, "cache_formula": 64}


@over(names(), representatives())
def test_every_published_model_decodes_as_it_computes(name) -> None:
    model, built = check_build(spec(name, tiny=True), CPU, FP32, seed=1)
    decoded = check_decoding(model, FP32, seed=1)
    assert failures(built, decoded) == []
    assert decoded["largest_difference"] <= decoded["bound"] == BOUND
    assert decoded["compared_in"] == "float64"
    assert sum(decoded["chunks"]) + decoded["steps"] == decoded["tokens"]
    windows = [layer.cache_spec().reach.limit or 0 for layer in model.spec.layers]
    assert decoded["tokens"] > max(windows) + 24


def test_single_tokens_that_are_computed_otherwise_are_not_judged() -> None:
    """Nemotron 3 has no minimum time step in single-token passes."""
    small = swap(spec("nemotron3", tiny=True), Mamba2, lambda mamba: replace(mamba, min_step=1e-3))
    decoded = check_decoding(build(small), FP32, seed=1)
    assert decoded["bound"] is None
    assert decoded["largest_difference"] > 1e-2
    assert failures(BUILT, decoded) == []


def windowed(window: int) -> Decoder:
    norm = RMSNorm(1e-6)
    layer = Layer(pre(norm, GQA(4, 2, 8, RoPE(1e4), window=window)), pre(norm, GLU(64)))
    return Decoder(64, 32, (layer, layer), norm)


def test_a_wrong_mask_is_detected(monkeypatch) -> None:
    """The window is one token too short wherever a mask is made. Single-token decode uses no mask."""
    model = build(windowed(16))
    assert failures(BUILT, check_decoding(model, FP32, 0)) == []

    def shorter(queries: Tensor, keys: Tensor, reach: Window) -> Tensor:
        return visible(queries, keys, Window(reach.size - 1))

    for module in ("attention", "flash"):
        monkeypatch.setattr(f"zoo.core.ops.{module}.visible", shorter)
    assert "differs from the forward" in failures(BUILT, check_decoding(model, FP32, 0))[0]


def test_each_failure_has_a_line() -> None:
    assert failures(BUILT, None) == failures(BUILT, DECODED) == []
    assert failures(BUILT | dict(formula=101), None) == ["100 parameters were built, and the formula says 101"]
    assert failures(BUILT, DECODED | dict(cache_formula=65)) == ["the cache has 64 bytes, and the formula says 65"]
    assert "by 5.0e-05 of the largest logit, above 1e-10" in failures(BUILT, DECODED | dict(largest_difference=5e-5))[0]
    assert "by nan" in failures(BUILT, DECODED | dict(largest_difference=float("nan")))[0]
    assert failures(BUILT, DECODED | dict(largest_difference=1.0, bound=None)) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", split(distinct(), ["llama3-8b", "qwen3-30b-a3b"]))
def test_a_narrow_dtype_is_judged_with_the_same_weights_in_float64(name, dtype) -> None:
    """A router's choice then does not depend on rounding."""
    model, built = check_build(spec(name, tiny=True), CPU, dtype, seed=0)
    decoded = check_decoding(model, dtype, seed=0)
    assert failures(built, decoded) == []
    assert decoded["bound"] == BOUND


def test_logits_that_are_no_numbers_in_the_models_dtype_fail() -> None:
    """They fail whatever the logits in float64 are."""
    model = build(windowed(16)).half()
    model.norm.weight.data.fill_(float("inf"))
    assert "by nan" in failures(BUILT, check_decoding(model, torch.float16, seed=0))[0]


def test_what_does_not_fit_in_float64_is_compared_in_its_own_dtype_and_not_judged(monkeypatch) -> None:
    model = build(windowed(16))
    monkeypatch.setattr(self_check, "free_memory", lambda device: model.spec.params())
    decoded = check_decoding(model, FP32, seed=0)
    assert decoded["compared_in"] == "float32"
    assert decoded["bound"] is None
    assert decoded["largest_difference"] > BOUND
    assert "float64 needs" in decoded["not_judged"]


def test_a_window_longer_than_the_run_is_not_filled() -> None:
    assert tokens_needed(windowed(10**9)) == self_check.MAX_WINDOW_TOKENS + self_check.TOKENS_PAST_WINDOW


def test_memory_is_checked_before_anything_is_allocated(monkeypatch) -> None:
    small = spec(names()[0], tiny=True)
    weights = small.params() * 4
    for free, fits in ((None, True), (10 * weights, True), (weights, False)):
        monkeypatch.setattr(self_check, "free_memory", lambda device, free=free: free)
        if fits:
            require_free_memory(small, CPU, FP32)
            continue
        with pytest.raises(
            NotAvailable, match=r"float32 need .* on cpu .* is free; --dtype bfloat16 halves it, --tiny"
        ):
            require_free_memory(small, CPU, FP32)
        require_free_memory(small, CPU, torch.bfloat16)


def test_devices() -> None:
    assert find_device("cpu") == CPU
    assert find_device("meta").type == "meta"
    with pytest.raises(UsageError, match="unknown device 'cpuu'; did you mean cpu"):
        find_device("cpuu")
    if not torch.cuda.is_available():
        with pytest.raises(NotAvailable, match="no device cuda here: "):
            find_device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", names())
def test_every_published_model_decodes_on_a_gpu(name) -> None:
    model, built = check_build(spec(name, tiny=True), find_device("cuda"), FP32, seed=1)
    assert failures(built, check_decoding(model, FP32, seed=1)) == []
