"""The gated linear unit and its activations, against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch

from tests.exact import assert_equal
from zoo import GLU, ClampedSwiGLU, GeGLU, SwiGLU
from zoo.blocks.feed_forward import Activation


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def clamped(gate: float, up: float, alpha: float = 1.702, limit: float = 2.0) -> float:
    """gpt-oss: the gate is bounded from above only, up on both sides; one is added to up."""
    gate, up = min(gate, limit), max(-limit, min(up, limit))
    return gate / (1 + math.exp(-alpha * gate)) * (up + 1)


def clamped_swiglu(gate: float, up: float, limit: float = 2.0) -> float:
    """DeepSeek-V4: the same bounds, and nothing is added."""
    return silu(min(gate, limit)) * max(-limit, min(up, limit))


FORMULAS = {
    SwiGLU(): lambda gate, up: silu(gate) * up,
    GeGLU(): lambda gate, up: gelu_tanh(gate) * up,
    ClampedSwiGLU(alpha=1.702, limit=2.0): clamped,
    ClampedSwiGLU(alpha=1.0, limit=2.0, plus_one=False): clamped_swiglu,
}


@pytest.mark.parametrize("act", FORMULAS, ids=lambda act: type(act).__name__)
def test_activations_are_their_formulas(act: Activation) -> None:
    """Far enough out on both sides to reach every clamp."""
    gate, up = torch.meshgrid(torch.linspace(-6, 6, 41), torch.linspace(-6, 6, 41), indexing="ij")
    joined = act.join(gate, up)
    for i in range(0, 41, 4):
        for j in range(41):
            assert_equal(joined[i, j], torch.tensor(FORMULAS[act](gate[i, j].item(), up[i, j].item())))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("act", FORMULAS, ids=lambda act: type(act).__name__)
def test_down_of_gate_and_up(act: Activation, bias: bool) -> None:
    spec = GLU(hidden=12, act=act, bias=bias)
    module = spec.build(8)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_()
    x = torch.randn(2, 3, 8)
    w = module.state_dict()
    gate, up = (x @ w[f"{part}.weight"].T + w.get(f"{part}.bias", 0) for part in ("gate", "up"))
    expected = act.join(gate, up) @ w["down.weight"].T + w.get("down.bias", 0)
    assert_equal(module(x), expected)
    assert spec.params(8) == sum(weight.numel() for weight in module.parameters())
    assert spec.flops(8, past=100, new=6) == 2 * 6 * 3 * 8 * 12
    assert ("bias" in spec.describe()) == bias
