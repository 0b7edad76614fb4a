"""A dense feed-forward and a mixture of experts side by side, against their formula."""

from __future__ import annotations

import pytest
import torch

from tests.exact import assert_equal, differs
from zoo import GLU, DenseAndMoE, MoE, NormedSoftmaxTopK, RMSNorm, SoftmaxTopK
from zoo.errors import SpecError

DIM = 16
NORM = RMSNorm(1e-5)
ROUTED = MoE(6, GLU(10), NormedSoftmaxTopK(2, NORM))
SPEC = DenseAndMoE(GLU(20), ROUTED, NORM)


@torch.no_grad()
def test_both_are_added_and_the_router_sees_the_input_itself() -> None:
    module = SPEC.build(DIM)
    for weight in module.parameters():
        weight.normal_()
    x = torch.randn(2, 5, DIM)
    weights, chosen = module.routed.router(x)
    experts = module.routed.experts(module.routed_pre(x), weights, chosen)
    expected = module.dense_post(module.dense(module.dense_pre(x))) + module.routed_post(experts)
    assert_equal(module(x), expected)
    normed, _ = module.routed.router(module.routed_pre(x))
    assert differs(weights, normed)


def test_costs_are_sums_and_widths_keep_their_proportion() -> None:
    parameters = dict(SPEC.build(DIM).named_parameters())
    assert SPEC.params(DIM) == sum(weight.numel() for weight in parameters.values())
    idle = 4 * GLU(10).params(DIM)  # of 6 experts 2 are chosen
    assert SPEC.active_params(DIM) == SPEC.params(DIM) - idle
    wider = SPEC.with_width(40)
    assert (wider.width, wider.routed.width) == (40, 20)


def test_the_dense_one_is_dense() -> None:
    with pytest.raises(SpecError, match="dense must hold no MoE"):
        DenseAndMoE(MoE(4, GLU(8), SoftmaxTopK(2)), ROUTED, NORM)
