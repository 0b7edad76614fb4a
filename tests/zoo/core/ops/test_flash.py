"""The gradient of attention with sinks and windows, against autograd through a softmax in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.exact import assert_as_near, assert_equal
from zoo.core.forward_context import Mask, ReachMask, visible
from zoo.core.ops import flash
from zoo.core.ops.attention import attention
from zoo.costs import Full, Window

pytestmark = pytest.mark.usefixtures("_float64")

# new queries, keys, window: one block and several, with keys before the queries and without.
CASES = {
    "causal": (9, 9, None),
    "filled": (5, 12, None),
    "short": (6, 6, 8),
    "windows": (23, 23, 4),
    "ring": (7, 11, 4),
}


def explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, sinks: Tensor | None) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat([sinks[:, None, None].expand(*scores.shape[:3], 1), scores], dim=-1)
    return scores.softmax(-1)[..., -k.shape[2] :] @ v


@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_a_softmax(case: str, with_sinks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of queries, keys, values and sinks are compared, for heads that share keys and sinks with very
    different scores."""
    new, keys, window = CASES[case]
    positions = torch.arange(keys)
    reach = Window(window) if window else Full()
    drawn = visible(positions[keys - new :], positions, reach)
    mask: Mask = drawn if new < keys else None
    if window is not None:
        mask = ReachMask(positions[keys - new :], positions, reach)
    q, k, v = torch.randn(2, 4, new, 8), torch.randn(2, 2, keys, 8), torch.randn(2, 2, keys, 8)
    sinks = torch.tensor([0.3, -30.0, 5.0, 1e4]) if with_sinks else None
    inputs = [x.requires_grad_() for x in (q, k, v, *(() if sinks is None else (sinks,)))]
    used = []
    if window is not None or with_sinks:
        operator = flash._operator
        monkeypatch.setattr(flash, "_operator", lambda *given: used.append(1) or operator(*given))
    out = attention(q, k, v, mask, 0.3, sinks)
    assert bool(used) == (window is not None or with_sinks)
    wanted = explicit(q, k, v, drawn, 0.3, sinks)
    assert_equal(out, wanted)
    weight = torch.randn(out.shape)
    for got, expected in zip(*(torch.autograd.grad(x, inputs, weight) for x in (out, wanted)), strict=True):
        assert_equal(got, expected)


def test_bfloat16_under_autocast() -> None:
    """Inputs have several dtypes, as after a rotation in float32. Each gradient has the dtype of its input."""
    positions = torch.arange(20)
    mask, drawn = ReachMask(positions, positions, Window(4)), visible(positions, positions, Window(4))
    seeds = []
    for _ in range(4):
        q, k, v = (
            torch.randn(1, 4, 20, 8).float(),
            torch.randn(1, 2, 20, 8).float(),
            torch.randn(1, 2, 20, 8).bfloat16(),
        )
        inputs = [x.requires_grad_() for x in (q, k, v, torch.randn(4).float())]
        exact = [x.detach().double().requires_grad_() for x in inputs]
        weight = torch.randn(1, 4, 20, 8).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            out, plain = attention(*inputs[:3], mask, 0.3, inputs[3]), explicit(*inputs[:3], drawn, 0.3, inputs[3])
        assert out.dtype == plain.dtype == torch.bfloat16
        forms = (out, inputs), (plain, inputs), (explicit(*exact[:3], drawn, 0.3, exact[3]), exact)
        seeds.append([(y, *torch.autograd.grad(y, given, weight.to(y.dtype))) for y, given in forms])
    for i in range(5):
        assert_as_near(*([seed[form][i] for seed in seeds] for form in range(3)), i)


def test_forward_mode_and_functional_gradients_work() -> None:
    """They use the form without an operator, and agree."""
    q, k, v, sinks = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(4)

    def run(q: Tensor) -> Tensor:
        return attention(q, k, v, None, 0.3, sinks).square().sum()

    _, tangent = torch.func.jvp(run, (q,), (torch.ones_like(q),))
    assert_equal(torch.func.grad(run)(q).sum(), tangent)
