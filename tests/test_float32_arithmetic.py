"""Float32 arithmetic anywhere in a float64 model moves the logits by far more than the bound."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

import zoo
from tests.exact import MUTANT, largest_difference
from tests.models import randomised, tokens_of
from zoo.core import float32


def _to_float32(x: Tensor) -> Tensor:
    return x.float()


# Functions that keep float64, where they are used -> a model whose logits they reach.
PLACES = {
    ("zoo.blocks.norms", "upcast_dtype"): "llama3-8b",
    ("zoo.blocks.routers", "upcast"): "qwen3-30b-a3b",
    ("zoo.blocks.mamba2", "upcast"): "granite4-h-tiny",
    ("zoo.blocks.delta_rule", "upcast"): "qwen3-next-80b-a3b",
    ("zoo.core.ops.recurrence", "upcast_dtype"): "qwen3-next-80b-a3b",
    ("zoo.core.ops.causal_conv", "upcast_dtype"): "qwen3-next-80b-a3b",
    ("zoo.core.cache", "upcast_dtype"): "llama3-8b",
    ("zoo.core.ops.attention", "upcast_dtype"): "gemma2-2b",
    ("zoo.blocks.compressor", "upcast_dtype"): "deepseek-v4-flash-284b",
    ("zoo.blocks.hyper_connections", "upcast_dtype"): "deepseek-v4-flash-284b",
}


def test_every_place_is_listed_or_needs_no_float64_here() -> None:
    """The other places only decide the dtypes of kernels for narrower models."""
    users = {
        (module, name)
        for module, loaded in sys.modules.items()
        if module.startswith("zoo.") and module != float32.__name__
        for name in ("upcast", "upcast_dtype")
        if getattr(loaded, name, None) is getattr(float32, name)
    }
    elsewhere = {
        ("zoo.core.ops.flash", "upcast_dtype"),  # gradients of attention, in tests/test_gradients.py
        ("zoo.core.ops.linear", "upcast_dtype"),  # compiled decode
        ("zoo.core.ops.indexing", "upcast_dtype"),  # choices
        ("zoo.core.ops.attention", "upcast"),  # a kernel for narrower dtypes
        ("zoo.training.losses", "upcast"),  # tests/zoo/training/test_losses.py
    }
    assert users - elsewhere == PLACES.keys() - elsewhere


@torch.no_grad()
@pytest.mark.parametrize(("module", "name"), PLACES, ids=map(".".join, PLACES))
def test_float32_arithmetic_is_found(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = zoo.spec(PLACES[module, name], tiny=True)
    model, tokens = randomised(spec, dtype=torch.float64), tokens_of(spec, 1, 40)
    exact = model(tokens)
    assert exact.dtype == torch.float64
    narrow = _to_float32 if name == "upcast" else (lambda dtype: torch.float32)
    monkeypatch.setattr(sys.modules[module], name, narrow)
    assert largest_difference(model(tokens), exact) >= MUTANT
