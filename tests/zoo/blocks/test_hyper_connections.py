"""Hyper-connections: their weights, what they do to a stream, and that any model can have them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import zoo
from tests.exact import assert_equal
from tests.models import chunks, randomised, tokens_of
from zoo.core.ops.sinkhorn import doubly_stochastic
from zoo.errors import SpecError
from zoo.swaps.grammar import apply_swap

DIM, STREAMS = 6, zoo.Streams(count=3, eps=1e-3, norm_eps=1e-2)


class _Echo(nn.Module):
    """A block that adds one, and keeps what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        self.given = x
        return x + 1.0


def built(pre: zoo.RMSNorm | None = None) -> nn.Module:
    module = zoo.HyperBranch(zoo.GLU(4), pre, STREAMS, iterations=7).build(DIM)
    module.block = _Echo()
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape))
    return module


@torch.no_grad()
def test_a_branch_is_the_formula() -> None:
    """Token by token and stream by stream."""
    module, x = built(), torch.randn(2, 5, 3, DIM)
    got, weights = module(x), module.weights
    for b, t in torch.cartesian_prod(torch.arange(2), torch.arange(5)).tolist():
        streams = x[b, t]
        flat = streams.flatten()
        raw = weights.weight @ (flat / (flat.square().mean() + 1e-2).sqrt())
        read, write, mix = raw.split([3, 3, 9])
        bias = weights.bias.split([3, 3, 9])
        read = (read * weights.scale[0] + bias[0]).sigmoid() + 1e-3
        write = 2 * (write * weights.scale[1] + bias[1]).sigmoid()
        mixed = (mix * weights.scale[2] + bias[2]).view(3, 3).softmax(-1) + 1e-3
        mixed = mixed / (mixed.sum(0) + 1e-3)
        for _ in range(6):
            mixed = mixed / (mixed.sum(1, keepdim=True) + 1e-3)
            mixed = mixed / (mixed.sum(0) + 1e-3)
        inside = sum(read[i] * streams[i] for i in range(3))
        assert_equal(module.block.given[b, t], inside)
        for j in range(3):
            expected = write[j] * (inside + 1.0) + sum(mixed[i, j] * streams[i] for i in range(3))
            assert_equal(got[b, t, j], expected)


def test_equal_streams_are_mixed_to_themselves() -> None:
    """All streams begin as the embedding."""
    x = STREAMS.expand(torch.randn(2, 5, DIM))
    assert x.shape == (2, 5, 3, DIM)
    assert x.is_contiguous()
    assert torch.equal(x[:, :, 0], x[:, :, 2])
    matrix = doubly_stochastic(torch.randn(2, 5, 3, 3), 0.0, 500)
    assert_equal(matrix.transpose(-1, -2) @ x, x)


@torch.no_grad()
def test_streams_are_added_up_by_the_formula() -> None:
    module, x = STREAMS.build(DIM), torch.randn(2, 5, 3, DIM)
    for weight in module.parameters():
        weight.copy_(torch.randn(weight.shape))
    flat = x.flatten(2)
    normed = flat * (flat.square().mean(-1, keepdim=True) + 1e-2).rsqrt()
    weights = module.weights
    read = (normed @ weights.weight.T * weights.scale + weights.bias).sigmoid() + 1e-3
    assert_equal(module(x), torch.einsum("btn,btnd->btd", read, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_streams_stay_in_float32_at_least(dtype: torch.dtype) -> None:
    module = built(zoo.RMSNorm(1e-6)).float()
    before = {name: each.clone() for name, each in module.weights.named_parameters()}
    module.to(dtype)
    assert module.pre.weight.dtype == dtype
    for name, parameter in module.weights.named_parameters():
        assert parameter.dtype == (dtype if dtype == torch.float64 else torch.float32)
        assert torch.equal(parameter.float(), before[name])
    x = torch.randn(1, 2, 3, DIM).to(dtype)
    assert module(x).dtype == dtype


@pytest.mark.parametrize("name", ["qwen3-0.6b", "gemma3-1b", "granite4-h-tiny", "kimi-linear-48b-a3b"])
def test_any_model_can_have_them(name: str) -> None:
    """By a swap: its passes agree over a cache, costs are those of the module, and gradients reach every stream's
    weights."""
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
