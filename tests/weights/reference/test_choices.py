"""Choices that rounding explains, and those that it does not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from weights.reference.choices import ties
from zoo import Indexer, LayerNorm
from zoo.core.indexing import NOT_CHOSEN, Index

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
