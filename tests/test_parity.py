"""Logits of every architecture equal the released implementation's; those of a spec with one changed field differ."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import weights
import zoo
from tests import toys
from tests.models import bound, reference_bound
from tests.mutants import mutants
from tests.presets import screen_by_family, split
from zoo.catalog import allocate

LENGTH = 80  # past 3 windows of 16 + 1, and past every toy `original` of 64


@dataclass
class Case:
    """A reference, its weights in a folder, and what it computes."""

    folder: Path
    tokens: Tensor
    logits: Tensor
    coarse: Tensor  # the same in bfloat16
    bound: float  # the largest error of logits that count as equal


@pytest.fixture(scope="module", params=screen_by_family())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def case(name: str, saved: Callable[[str], Path]) -> Case:
    reference = toys.reference(name)
    tokens = torch.randint(0, 512, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = reference(tokens).logits
        coarse = deepcopy(reference).to(torch.bfloat16)(tokens).logits
    most = reference_bound(zoo.spec(name, tiny=True), reference, tokens, logits)
    return Case(saved(name), tokens, logits, coarse, most)


@pytest.fixture(scope="module")
def model(case: Case) -> nn.Module:
    return weights.load(case.folder)


def test_the_toy_stands_for_the_released_model(name: str, model: nn.Module, case: Case) -> None:
    """It has as many distinct layers, loading gives its spec, and the logits are of realistic size."""
    full, small = zoo.spec(name), zoo.spec(name, tiny=True)
    assert model.spec == small
    assert len(set(full.layers)) == len(set(small.layers))
    windows = [layer.cache_spec().reach.limit for layer in small.layers]
    assert all(3 * window + 1 <= LENGTH for window in windows if window)
    assert all(scaling.original < LENGTH for scaling in small.walk() if hasattr(scaling, "original"))
    assert case.logits.abs().max() > 1


@torch.no_grad()
@pytest.mark.parametrize("chunk", split([LENGTH, 33, 7, 1], [33, 1]))
def test_logits_equal_the_reference(model: nn.Module, case: Case, chunk: int) -> None:
    """In one pass, in chunks, and token by token."""
    cache = model.new_cache(*case.tokens.shape)
    logits = torch.cat([model(part, cache) for part in case.tokens.split(chunk, dim=1)], dim=1)
    off = (logits - case.logits).abs().amax(-1)
    assert off.max() <= case.bound
    assert off.median() <= bound(case.logits)


@torch.no_grad()
def test_logits_without_a_cache(model: nn.Module, case: Case) -> None:
    assert (model(case.tokens) - case.logits).abs().max() <= case.bound


@torch.no_grad()
def test_bfloat16_is_as_near_as_the_reference_in_bfloat16(case: Case) -> None:
    """Error to float32 at the median position: where a router's near tie flips, the whole position differs."""
    model = weights.load(case.folder, dtype=torch.bfloat16)
    ours, theirs = ((each.float() - case.logits).abs().amax(-1).median() for each in (model(case.tokens), case.coarse))
    assert ours <= 1.5 * theirs


@torch.no_grad()
@pytest.mark.parametrize("name", screen_by_family(most=1), indirect=True, scope="module")
def test_every_mutant_is_found(name: str, model: nn.Module, case: Case) -> None:
    """Each spec with one changed field, on the same weights, is off by at least 50 times the bound."""
    off = {label: _distance(mutant, model, case) for label, mutant in mutants(model.spec)}
    assert len(off) >= 3
    survivors = {label: distance for label, distance in off.items() if not distance >= 50 * case.bound}
    assert not survivors, f"{name}: {survivors}"


def _distance(mutant: zoo.Decoder, model: nn.Module, case: Case) -> float:
    changed = allocate(mutant)
    given = model.state_dict()
    for parameter, value in changed.state_dict().items():
        moved = parameter.replace(".pre.", ".post.") if ".pre." in parameter else parameter.replace(".post.", ".pre.")
        value.copy_(given[parameter if parameter in given else moved])
    return (changed(case.tokens) - case.logits).abs().max().item()
