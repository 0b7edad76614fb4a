"""Compiled models compute what they compute uncompiled, with as many graphs as there are kinds of passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters

import zoo
from tests.models import bound, distinct, randomised, tokens_of
from zoo.compiled import find_compiler
from zoo.decoder import Model
from zoo.errors import NotAvailable
from zoo.registry import Spec

DEFAULT = "qwen3-0.6b"  # of the others each costs some ten seconds
NAMES = [name if name == DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in distinct()]
LENGTH = 90  # past every toy window, in bands too


def has_compiler() -> bool:
    try:
        find_compiler()
    except NotAvailable:
        return False
    return True


pytestmark = [
    pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler"),
    pytest.mark.filterwarnings("ignore"),  # torch warns of its own code while it compiles
]


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    """No graph of another test counts, and one too many is an error instead of an uncompiled call."""
    torch.compiler.reset()
    counters.clear()
    with dynamo.patch(fail_on_recompile_limit_hit=True):
        yield
    torch.compiler.reset()


def pair(spec: zoo.Decoder, dtype: torch.dtype = torch.float32) -> tuple[Model, Model]:
    """The same weights, uncompiled and compiled."""
    plain, fast = randomised(spec, dtype=dtype), randomised(spec, dtype=dtype)
    fast.compile()
    return plain, fast


def run(model: Model, tokens: Tensor, sizes: list[int], room: int = 0) -> Tensor:
    """Logits of `tokens` in passes of these sizes over a cache with `room` beyond them."""
    cache = model.new_cache(len(tokens), tokens.shape[1] + room)
    return torch.cat([model(part, cache) for part in tokens.split(sizes, dim=1)], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_compiled_equals_uncompiled_at_every_length(name: str) -> None:
    """First passes, passes after others, lone tokens, without a cache and over caches of several sizes."""
    plain, fast = pair(zoo.spec(name, tiny=True))
    for batch, length, sizes, room in (
        (1, LENGTH, [40, 1, 1, 23, 1, 24], 0),
        (1, LENGTH, [70, 1, 1, 1, 17], 37),
        (1, 12, [5, 1, 6], 3),
        (1, 61, [60, 1], 1),
    ):
        tokens = tokens_of(plain.spec, batch, length, seed=length)
        expected = run(plain, tokens, sizes, room)
        assert (run(fast, tokens, sizes, room) - expected).abs().max() <= bound(expected)
    tokens = tokens_of(plain.spec, 1, LENGTH)
    assert (fast(tokens) - plain(tokens)).abs().max() <= bound(plain(tokens))
    assert graphs() <= most(plain.spec)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def most(spec: zoo.Decoder) -> int:
    """A first pass, a pass after others and a lone token for each kind of layer."""
    return 3 * len(set(spec.layers)) + 2
