"""Choices that rounding explains, and those that it does not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from weights.reference.choices import ties
from zoo import (
    GroupedSigmoidTopK,
    GroupedSoftmaxTopK,
    HashTopK,
    Indexer,
    InputScaledTopK,
    LayerNorm,
    NormedSoftmaxTopK,
    RMSNorm,
    SoftmaxTopK,
    SqrtSoftplusTopK,
)
from zoo.blocks.routers import Router
from zoo.core.indexing import NOT_CHOSEN, Index
from zoo.registry import Spec

BOUND = 1e-3


@pytest.mark.parametrize(
    ("own", "reference", "tied"),
    [
        ([0, 1], [0, 1], False),  # the same
        ([0, 1], [0, 2], True),  # 0.5 and 0.4999
        ([0, 1], [0, 3], False),  # 0.5 and 0.1
        ([0, 1], [0, 4], False),  # which the token does not see, though it scores highest
        ([0, 1], [NOT_CHOSEN, 0], False),  # one too few
    ],
)
def test_an_indexer_ties_where_no_key_of_the_reference_is_far_below_its_last(
    own: list[int], reference: list[int], tied: bool
) -> None:
    part = nn.Module()
    part.spec, part.every = Indexer(1, 1, 2, LayerNorm(1e-6)), 1
    keys = torch.tensor([1.0, 0.5, 0.4999, 0.1, 9.0]).view(1, 1, 5, 1)
    out = Index(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1), keys, 2)
    args = (torch.ones(1, 1, 1), None, SimpleNamespace(positions=torch.tensor([3])))
    found = ties(part, args, out, torch.tensor([[own]]), torch.tensor([[reference]]), BOUND)
    assert found.item() is tied


ROUTERS = [
    SoftmaxTopK(2, bias=True),
    SoftmaxTopK(2, renormalise=False),
    NormedSoftmaxTopK(2, RMSNorm(1e-5)),
    InputScaledTopK(2),
    GroupedSigmoidTopK(2, groups=1, keep=1, scale=1.0),
    GroupedSigmoidTopK(2, groups=4, keep=2, scale=2.5),
    GroupedSoftmaxTopK(2, groups=2, keep=1, scale=1.0),
    SqrtSoftplusTopK(2, scale=1.5),
]


def test_every_kind_of_router_is_among_these() -> None:
    kinds = {kind for kind in Spec.kinds.values() if issubclass(kind, Router)}
    assert {type(router) for router in ROUTERS} == kinds - {HashTopK}


@torch.no_grad()
@pytest.mark.parametrize("router", ROUTERS, ids=lambda router: router.describe())
def test_a_router_ties_where_its_last_expert_hardly_leads_the_next(router: Router) -> None:
    """The second and the third best have nearly the same score: which of them is chosen is rounding."""
    module, x = router.build(16, 8), torch.full((1, 1, 16), 1 / 16)
    for name, parameter in module.named_parameters():
        parameter.fill_(0.1 if name == "weight" else 1.0)
    module.weight[[1, 3, 5]] = torch.tensor([0.9, 0.8, 0.8 * (1 - 1e-6)])[:, None]  # each in a group of its own
    if getattr(router, "groups", 1) == 2:  # two groups of four: all in the first
        module.weight.copy_(module.weight[[1, 3, 5, 0, 2, 4, 6, 7]])
    out = module(x)
    chosen, other = out[1].sort(-1).values, torch.tensor([[[0, 7]]])
    assert not ties(module, (x,), out, chosen, chosen, BOUND).any()
    assert ties(module, (x,), out, chosen, other, BOUND).all()
    module.weight[chosen[0, 0]] *= 1.5
    assert not ties(module, (x,), module(x), chosen, other, BOUND).any()


def test_a_choice_by_the_token_id_is_never_rounding() -> None:
    module, x = HashTopK(2, 1.0, vocab=4).build(16, 8), torch.rand(1, 1, 16)
    out = (torch.ones(1, 1, 2), torch.tensor([[[0, 1]]]))
    assert not ties(module, (x,), out, out[1], out[1] + 1, 1e9).any()
