"""The gated linear unit and its activations, against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch

from tests.exact import assert_equal
from zoo import ClampedSwiGLU, GeGLU, SwiGLU
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
    """Inputs are large enough on both sides to reach every clamp."""
    gate, up = torch.meshgrid(torch.linspace(-6, 6, 41), torch.linspace(-6, 6, 41), indexing="ij")
    joined = act.join(gate, up)
    for i in range(0, 41, 4):
        for j in range(41):
            assert_equal(joined[i, j], torch.tensor(FORMULAS[act](gate[i, j].item(), up[i, j].item())))
