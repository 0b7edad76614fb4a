"""Hyper-connections: the dtype of their weights, and that any model can have them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import zoo
from tests.exact import assert_equal
from tests.models import chunks, randomised, tokens_of
from zoo.errors import SpecError
from zoo.swaps.grammar import apply_swap

DIM = 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_streams_stay_in_float32_at_least(dtype: torch.dtype) -> None:
    module = zoo.HyperBranch(zoo.GLU(4), zoo.RMSNorm(1e-6), zoo.Streams(count=3)).build(DIM).float()
    for weight in module.parameters():
        weight.data.normal_()
    before = {name: each.clone() for name, each in module.weights.named_parameters()}
    module.to(dtype)
    assert module.pre.weight.dtype == dtype
    for name, parameter in module.weights.named_parameters():
        assert parameter.dtype == (dtype if dtype == torch.float64 else torch.float32)
        assert torch.equal(parameter.float(), before[name])
    assert module(torch.randn(1, 2, 3, DIM).to(dtype), None).dtype == dtype


@pytest.mark.parametrize("name", ["qwen3-0.6b", "gemma3-1b", "granite4-h-tiny", "kimi-linear-48b-a3b"])
def test_any_model_can_have_them(name: str) -> None:
    """They come from a swap. Passes over a cache agree, costs are those of the module, and gradients reach every
    stream's weights."""
    before = zoo.spec(name, tiny=True)
    spec, _ = apply_swap(before, "norm=hyper")
    assert spec.streams == zoo.Streams()
    assert apply_swap(spec, "norm=hyper")[0] == spec
    assert apply_swap(spec, "Streams(count=2)")[0].streams == zoo.Streams(count=2)
    assert apply_swap(spec, "norm=pre")[0].streams is None
    model, tokens = randomised(spec), tokens_of(spec, 2, 40)
    assert spec.params() == sum(each.numel() for each in model.parameters())
    branches = sum(len(list(layer.branches())) for layer in spec.layers)
    mixing = branches * (24 * (4 * spec.dim + 1) + 3) + 4 * (4 * spec.dim + 1) + 1
    assert spec.param_breakdown()["streams"] == mixing
    with torch.no_grad():
        expected, cache = model(tokens), model.new_cache(2, 40)
        got = torch.cat([model(part, cache) for part in chunks(tokens, [17, 1, 9, 13])], dim=1)
        assert_equal(got, expected)
    model(tokens).square().mean().backward()
    weights = [each for key, each in model.named_parameters() if ".weights." in key]
    assert len(weights) == 3 * branches + 3
    assert all(each.grad is not None and each.grad.abs().max() > 0 for each in weights)


def test_all_layers_have_the_same_streams() -> None:
    spec, _ = apply_swap(zoo.spec("qwen3", tiny=True), "norm=hyper")
    branch = spec.layers[0].attn
    with pytest.raises(SpecError, match="the same residual streams"):
        zoo.Layer(branch, zoo.pre(spec.norm, spec.layers[0].ffn.block))
    with pytest.raises(SpecError, match="one residual stream, which every layer must have"):
        replace(spec, streams=None)
    with pytest.raises(SpecError, match="at least 2 streams"):
        zoo.Streams(count=1)
