"""The four placements of norms, compared with their formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.exact import assert_equal, differs
from zoo import GLU, GQA, Branch, Layer, PostNorm, RMSNorm, RoPE, olmo, post, pre, sandwich
from zoo.blocks.layer import PLACEMENTS

DIM = 16
NORM, FFN = RMSNorm(1e-5), GLU(24)
ATTN = GQA(heads=2, kv_heads=1, head_dim=8, rope=RoPE(1e4))

FORMULAS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "pre": lambda m, x: x + m.block(m.pre(x)),
    "olmo": lambda m, x: x + m.post(m.block(x)),
    "sandwich": lambda m, x: x + m.post(m.block(m.pre(x))),
    "post": lambda m, x: m.norm(x + m.block(x)),
}


def built(spec: Branch | PostNorm | Layer) -> nn.Module:
    module = spec.build(DIM)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape))
    return module


@pytest.mark.parametrize("placement", FORMULAS)
def test_a_placement_is_its_formula(placement: str) -> None:
    spec = PLACEMENTS[placement](NORM, FFN)
    module, x = built(spec), torch.randn(2, 3, DIM)
    assert_equal(module(x), FORMULAS[placement](module, x))
    assert spec.placement == placement


def test_the_placements_differ_and_none_is_one_too() -> None:
    x, weights = torch.randn(2, 3, DIM), {}
    outs = []
    for spec in (pre(NORM, FFN), olmo(NORM, FFN), sandwich(NORM, FFN), post(NORM, FFN), Branch(FFN)):
        module = built(spec)
        weights = weights or module.block.state_dict()
        module.block.load_state_dict(weights)
        outs.append(module(x))
    assert all(differs(one, other) for i, one in enumerate(outs) for other in outs[:i])
    assert Branch(FFN).placement == "none"
    module = built(Branch(FFN))
    assert_equal(module(x), x + module.block(x))


def test_the_norms_inside_a_block_are_not_its_placements() -> None:
    normed = GQA(heads=2, kv_heads=1, head_dim=8, rope=RoPE(1e4), qk_norm=RMSNorm(0.5))
    assert pre(NORM, normed).norms() == (NORM,)
    assert Branch(NORM).norms() == ()
