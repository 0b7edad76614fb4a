"""Logits of every architecture equal the released implementation's; those of a spec with one changed field differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import weights
import zoo
from tests import toys
from tests.exact import MUTANT, assert_equal, in_float64, largest_difference
from tests.models import chunks
from tests.mutants import mutants, subtle_mutants
from tests.presets import screen_by_family
from zoo.catalog import allocate

LENGTH = 80  # past 3 windows of 16 + 1, and past every toy `original` of 64
# Token by token from the start, once round a window of 16, and past an `original` of 64, with chunks in between.
DECODED = [*[1] * 3, 29, *[1] * 18, 12, *[1] * 4, LENGTH]
PREFIX = 24  # tokens that show most mutants: past a window of 16 + 1
COARSE = 5e-4  # of the largest logit: the least amount by which a wrong field must move the logits


@dataclass
class Case:
    """A reference's weights in a folder, and its logits in float64."""

    folder: Path
    tokens: Tensor
    logits: Tensor


@pytest.fixture(scope="module", params=screen_by_family())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def case(name: str, saved: Callable[[str], Path]) -> Case:
    tokens = torch.randint(0, 512, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), in_float64():
        return Case(saved(name), tokens, toys.exact_reference(name)(tokens).logits)


@pytest.fixture(scope="module")
def model(case: Case) -> nn.Module:
    return weights.load(case.folder, dtype=torch.float64)


@torch.no_grad()
def test_logits_equal_the_reference(name: str, model: nn.Module, case: Case) -> None:
    """They are compared without a cache, and with one in a single pass and in chunks. The toy represents the released
    model: it has the same number of distinct layers, loading gives its spec, and its logits have a realistic size."""
    full, small = zoo.spec(name), zoo.spec(name, tiny=True)
    assert model.spec == small
    assert len(set(full.layers)) == len(set(small.layers))
    windows = [layer.cache_spec().reach.limit for layer in small.layers]
    assert all(3 * window + 1 <= LENGTH for window in windows if window)
    assert all(scaling.original < LENGTH for scaling in small.walk() if hasattr(scaling, "original"))
    assert case.logits.abs().max() > 1
    assert_equal(model(case.tokens), case.logits, "without a cache")
    for sizes in ([LENGTH], [33], DECODED):
        cache = model.new_cache(*case.tokens.shape)
        passes = [model(part, cache) for part in chunks(case.tokens, sizes)]
        assert_equal(torch.cat(passes, dim=1), case.logits, f"in chunks of {sizes}")


@torch.no_grad()
@pytest.mark.parametrize("name", screen_by_family(most=1), indirect=True, scope="module")
def test_every_mutant_is_found(name: str, model: nn.Module, case: Case) -> None:
    """Mutants are specs with one changed field and the same weights. Some differ so little that float32 would not show
    it."""
    assert_equal(model(case.tokens[:1, :PREFIX]), case.logits[:1, :PREFIX], "a prefix has the logits of the whole")
    for made, least in ((mutants, COARSE), (subtle_mutants, MUTANT)):
        off = {label: _distance(mutant, model, case, least) for label, mutant in made(model.spec)}
        assert off
        survivors = {label: distance for label, distance in off.items() if not distance >= least}
        assert not survivors, f"{name}: {survivors}"


def _distance(mutant: zoo.Decoder, model: nn.Module, case: Case, least: float) -> float:
    """The largest difference of a mutant's logits from the reference's: over the first tokens of a prompt, or over all
    tokens of both prompts where that is less than `least`."""
    changed = allocate(mutant, dtype=torch.float64)
    given = model.state_dict()
    for parameter, value in changed.state_dict().items():
        moved = parameter.replace(".pre.", ".post.") if ".pre." in parameter else parameter.replace(".post.", ".pre.")
        value.copy_(given[parameter if parameter in given else moved])
    distance = largest_difference(changed(case.tokens[:1, :PREFIX]), case.logits[:1, :PREFIX])
    return distance if distance >= least else largest_difference(changed(case.tokens), case.logits)
