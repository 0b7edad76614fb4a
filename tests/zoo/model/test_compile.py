"""Compiled models compute what uncompiled ones compute, with one graph for each kind of forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import zoo
from tests.exact import assert_as_near, assert_equal
from tests.models import has_compiler, randomised, tokens_of
from tests.presets import distinct, split
from zoo.core import kernels
from zoo.errors import NotAvailable
from zoo.model.module import Model

DEFAULT = "qwen3-0.6b"  # each other one costs some ten seconds
# Every kernel that may replace a plain one, and none.
FORCED = {name: operation.kernel for name, operation in kernels.OPERATIONS.items()}
KERNELS = [pytest.param(FORCED, id="every kernel"), pytest.param(kernels.PLAIN, marks=pytest.mark.slow)]
NAMES = split(distinct(), [DEFAULT])


pytestmark = [
    pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler"),
    pytest.mark.filterwarnings("ignore"),  # torch warns of its own code while it compiles
]


@pytest.fixture(autouse=True)
def _every_kernel(_strict_compiler: None) -> Iterator[None]:
    """All kernels are used, unless a test sets others."""
    with kernels.using(FORCED):
        yield


def pair(spec: zoo.Decoder, dtype: torch.dtype = torch.float64) -> tuple[Model, Model]:
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
@pytest.mark.parametrize("chosen", KERNELS)
def test_compiled_equals_uncompiled_at_every_length_with_three_graphs_a_layer(chosen: Any, name: str) -> None:
    """Prefill into an empty cache, prefill into a filled one and single tokens, over caches of several sizes: below, at
    and above a window, with room left and filled to the last place by several tokens or one; a single first token, and
    one after more keys than Inductor reduces in one piece (4,096). MLA has two forms of prefill into a filled cache. A
    pass without a cache is one graph more, since it stores nothing.
    """
    kernels.use(chosen)
    plain, fast = pair(zoo.spec(name, tiny=True))
    for sizes, room in (
        ([40, 1, 1, 23, 1, 24], 5),
        ([70, 1, 1, 1, 17], 37),
        ([5, 1, 50, 1], 1),
        ([6, 1, 5], 0),
        ([39, 1], 0),
    ):
        tokens = tokens_of(plain.spec, 1, sum(sizes), seed=room)
        expected = run(plain, tokens, sizes, room)
        assert_equal(run(fast, tokens, sizes, room), expected)
    token = tokens_of(plain.spec, 1, 1)
    most = plain.spec.positions.count if plain.spec.positions else 6001  # learned positions are limited
    for length in (length for length in (0, 1, 500, 4096, 6000) if length < most):  # of zeros
        caches = [model.new_cache(1, most) for model in (plain, fast)]
        for cache in caches:
            cache.length = length
        expected, got = (model(token, cache) for model, cache in zip((plain, fast), caches, strict=True))
        assert_equal(got, expected)
    kinds, heads = set(plain.spec.layers), 2
    passes = sum(4 if isinstance(layer.mixer, zoo.MLA) else 3 for layer in kinds)
    reaches = {layer: layer.cache_spec().reach.limit for layer in kinds}
    # One more where a head is as wide as a window is long: the compiler takes the two for one number.
    passes += sum(limit is not None and layer.mixer.head_dim == limit for layer, limit in reaches.items())
    assert counters["stats"]["unique_graphs"] <= passes + heads
    tokens = tokens_of(plain.spec, 1, 90)
    expected = plain(tokens)
    assert_equal(fast(tokens), expected)
    assert counters["stats"]["unique_graphs"] <= passes + len(kinds) + heads


@torch.no_grad()
@pytest.mark.parametrize(
    ("batch", "backend"),
    [(2, "aot_eager"), *(pytest.param(batch, "inductor", marks=pytest.mark.slow) for batch in (2, 5, 9))],
)
def test_several_sequences(batch: int, backend: str) -> None:
    """So few that single-token products run as reductions, and more."""
    plain, fast = pair(zoo.spec(DEFAULT, tiny=True))
    fast.compile(backend=backend)
    tokens = tokens_of(plain.spec, batch, 40)
    expected = run(plain, tokens, [30, 1, 9])
    assert_equal(run(fast, tokens, [30, 1, 9]), expected)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_narrow_dtypes_are_as_near_to_float64_as_uncompiled(dtype: torch.dtype) -> None:
    plain, fast = pair(zoo.spec(DEFAULT, tiny=True), dtype)
    tokens = [tokens_of(plain.spec, 1, 60, seed) for seed in range(3)]
    compiled, uncompiled = ([run(model, each, [40] + [1] * 20) for each in tokens] for model in (fast, plain))
    exact = plain.double()
    assert_as_near(compiled, uncompiled, [exact(each) for each in tokens])


@torch.no_grad()
def test_compiled_decode_has_the_kernels_that_are_chosen() -> None:
    """Of a layer and of the head: the graphs that reduce, and none where plain kernels are chosen. Options reach
    torch.compile: here a backend that keeps graphs."""
    spec, found = zoo.spec(DEFAULT, tiny=True), {}
    for operation in ("compiled decode linear", "compiled decode attention", None):
        made: list[str] = []

        def keep(graph: torch.fx.GraphModule, inputs: list[Tensor], made: list[str] = made) -> torch.fx.GraphModule:
            made.append(graph.print_readable(print_output=False))
            return graph

        kernels.use({operation: FORCED[operation]} if operation else kernels.PLAIN)
        plain, fast = pair(spec)
        fast.compile(backend=keep)
        tokens, caches = tokens_of(spec, 2, 12), [plain.new_cache(2, 12) for _ in range(2)]
        for cache in caches:
            plain(tokens[:, :10], cache)
        for token in tokens[:, 10:].split(1, dim=1):
            expected, got = (model(token, cache) for model, cache in zip((plain, fast), caches, strict=True))
            assert_equal(got, expected)
        assert len(made) == 2
        found[operation] = sum("as_strided" in text for text in made)
    assert found == {"compiled decode linear": 2, "compiled decode attention": 1, None: 0}


def test_a_missing_cpp_compiler_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    model = zoo.build(DEFAULT, tiny=True)
    with pytest.raises(NotAvailable, match=r"C\+\+ compiler"):
        model.compile()
    assert model(tokens_of(model.spec, 1, 3)).isfinite().all()
