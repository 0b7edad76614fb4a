"""The experts of a layer with gradients, against autograd through each token's own products in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.exact import assert_equal
from zoo import ClampedSwiGLU, GeGLU, SwiGLU
from zoo.blocks.feed_forward import Activation
from zoo.core.ops import routed_glu as module
from zoo.core.ops.routed_glu import allows_routed_glu, routed_glu

pytestmark = pytest.mark.usefixtures("_float64")
TOKENS, K, EXPERTS, DIM, HIDDEN = 9, 2, 5, 8, 6


def inputs(with_bias: bool) -> list[Tensor | None]:
    """Returns x, weights, gate, up, down and their biases. No token chooses expert 3 (`choices`)."""
    shapes = [(3, 3, DIM), (3, 3, K), (EXPERTS, HIDDEN, DIM), (EXPERTS, HIDDEN, DIM), (EXPERTS, DIM, HIDDEN)]
    biases = [(EXPERTS, HIDDEN), (EXPERTS, HIDDEN), (EXPERTS, DIM)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes] + [
        torch.randn(shape, requires_grad=True) if with_bias else None for shape in biases
    ]


def choices() -> Tensor:
    first = torch.tensor([0, 0, 1, 4, 4, 4, 4, 2, 0]).view(3, 3)
    return torch.stack([first, (first + 1) % EXPERTS % 3], dim=-1)


def one_by_one(act: Activation, chosen: Tensor, given: list[Tensor | None]) -> Tensor:
    x, weights, gate, up, down, *biases = given
    gate_bias, up_bias, down_bias = (0 if bias is None else bias[chosen] for bias in biases)
    hidden = act.join(
        torch.einsum("bti,btkoi->btko", x, gate[chosen]) + gate_bias,
        torch.einsum("bti,btkoi->btko", x, up[chosen]) + up_bias,
    )
    outputs = torch.einsum("btki,btkoi->btko", hidden, down[chosen]) + down_bias
    return (outputs * weights[..., None]).sum(-2)


@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("act", [SwiGLU(), GeGLU(), ClampedSwiGLU(1.7, 1.0)], ids=lambda act: type(act).__name__)
def test_values_and_every_gradient(
    act: Activation, with_bias: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block holds one expert, some experts or all."""
    monkeypatch.setattr(module, "BLOCK_BYTES", rows * DIM * 8)
    given, chosen = inputs(with_bias), choices()
    out, expected = routed_glu(act.join, given[0], given[1], chosen, *given[2:]), one_by_one(act, chosen, given)
    assert_equal(out, expected)
    upstream, leaves = torch.randn(out.shape), [each for each in given if each is not None]
    got = torch.autograd.grad(out, leaves, upstream)
    for ours, theirs in zip(got, torch.autograd.grad(expected, leaves, upstream), strict=True):
        assert ours.shape == theirs.shape
        assert_equal(ours, theirs)
    assert not got[2][3].any(), "an expert without tokens has a gradient of zero"


def test_only_what_needs_a_gradient_gets_one() -> None:
    """Each parameter is tested with all others frozen. Its gradient equals that without frozen parameters."""
    given, chosen = inputs(with_bias=True), choices()
    whole = torch.autograd.grad(routed_glu(SwiGLU().join, given[0], given[1], chosen, *given[2:]).sum(), given)
    for i, expected in enumerate(whole):
        alone = [each.detach().requires_grad_(j == i) for j, each in enumerate(given)]
        routed_glu(SwiGLU().join, alone[0], alone[1], chosen, *alone[2:]).sum().backward()
        assert [j for j, each in enumerate(alone) if each.grad is not None] == [i]
        assert_equal(alone[i].grad, expected)


def test_what_it_is_used_for() -> None:
    """It is used on the CPU, with gradients, in one dtype, without autocast or functional transforms."""
    x, weight = torch.randn(2, 3, DIM).float(), torch.randn(EXPERTS, HIDDEN, DIM).float()
    assert allows_routed_glu(x, weight, None)
    assert not allows_routed_glu(x, weight.double())
    assert not allows_routed_glu(x.bfloat16(), weight.bfloat16())
    with torch.no_grad():
        assert not allows_routed_glu(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not allows_routed_glu(x, weight)
    seen = []
    torch.func.grad(lambda x: (seen.append(allows_routed_glu(x, weight)), x.sum())[1])(x)
    assert seen == [False]
