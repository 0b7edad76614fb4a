"""Nemotron 3's time steps are clamped from below in passes of several tokens but not of one, as in the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import weights
from tests.exact import assert_equal, differs, in_float64
from tests.reference import toy_config, toy_reference

LENGTH, LEAST = 24, 0.7  # softplus of a random number is about as often below as above


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    with in_float64():
        made = toy_reference(toy_config("nemotron3-nano-30b-a3b", layers=6) | {"time_step_min": LEAST}).double()
        made.set_experts_implementation("eager")  # grouped products take no float64
        return made


@pytest.fixture(scope="module")
def model(reference: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    folder = tmp_path_factory.mktemp("nemotron3")
    reference.save_pretrained(folder)
    return weights.load(folder, dtype=torch.float64)


def logits(reference: nn.Module, tokens: Tensor, whole: int) -> Tensor:
    """Returns the reference's logits: the first `whole` tokens in one pass, the others one by one."""
    with in_float64():
        first = reference(tokens[:, :whole], use_cache=True)
        rest = [reference(tokens[:, i : i + 1], cache=first.cache, use_cache=True) for i in range(whole, LENGTH)]
    return torch.cat([first.logits, *(each.logits for each in rest)], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("whole", [LENGTH, 9])
def test_short_time_steps_are_lengthened_before_single_tokens(
    reference: nn.Module, model: nn.Module, whole: int
) -> None:
    tokens = torch.randint(0, 512, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    expected = logits(reference, tokens, whole)
    cache = model.new_cache(*tokens.shape)
    ours = torch.cat([model(part, cache) for part in tokens.split([whole, *[1] * (LENGTH - whole)], dim=1)], dim=1)
    assert_equal(ours, expected)


@torch.no_grad()
def test_that_makes_the_two_differ(model: nn.Module) -> None:
    tokens = torch.randint(0, 512, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    whole, cache = model(tokens), model.new_cache(*tokens.shape)
    single = torch.cat([model(part, cache) for part in tokens.split(1, dim=1)], dim=1)
    assert differs(single, whole)
