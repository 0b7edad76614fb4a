"""Growth against brute force: every context is computed from the layers, and searched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zoo
from benchmarks.analytic.kv import Change, Piece, changes, longest, pieces
from tests.presets import over

BF16 = torch.bfloat16
SMALL = zoo.spec("gemma3-1b", tiny=True)


@dataclass(frozen=True)
class Kept:
    """One layer: bytes per token, and a window."""

    size: int
    window: int | None

    def at(self, context: int) -> int:
        return self.size * (context if self.window is None else min(context, self.window))


layers = st.lists(st.builds(Kept, st.integers(1, 5), st.none() | st.integers(1, 12)), min_size=1, max_size=5)


def decoder(kept: list[Kept]) -> zoo.Decoder:
    """A decoder with these caches: in bfloat16, keys and values of `size` heads of 2 elements."""
    layer = SMALL.layers[0]
    attn = layer.mixer
    assert isinstance(attn, zoo.GQA)
    mixers = [replace(attn, heads=each.size, kv_heads=each.size, head_dim=2, window=each.window) for each in kept]
    return replace(SMALL, layers=tuple(replace(layer, attn=replace(layer.attn, block=mixer)) for mixer in mixers))


def bytes_at(kept: list[Kept], context: int) -> int:
    return sum(8 * each.at(context) for each in kept)  # 2 streams x 2 elements x 2 bytes


def value(growth: list[Piece], context: int) -> int:
    return max((piece for piece in growth if piece.start <= context), key=lambda piece: piece.start).at(context)


@given(layers)
def test_pieces_are_the_cache_at_every_context(kept: list[Kept]) -> None:
    growth = pieces(decoder(kept), BF16)
    for context in range(30):
        assert value(growth, context) == bytes_at(kept, context)
    for context in range(1, 30):
        assert value(growth, context) == decoder(kept).kv_bytes(context)


@given(layers, layers)
def test_changes_are_those_of_a_search(first: list[Kept], second: list[Kept]) -> None:
    found: list[Change] = []
    for context in range(1, 400):
        difference = bytes_at(first, context) - bytes_at(second, context)
        sign = (difference > 0) - (difference < 0)
        if not found or found[-1].sign != sign:
            found.append(Change(context, sign))
    assert changes(pieces(decoder(first), BF16), pieces(decoder(second), BF16)) == found


def compressed(spec: zoo.Decoder) -> Callable[[int], int]:
    """Bytes of a cache by the context, from the layers' own specs."""
    return lambda context: sum(layer.cache_spec().nbytes(context, 2) for layer in spec.layers)


@pytest.mark.parametrize("other", ["gemma3-1b", "llama3-8b"])
def test_caches_with_entries_are_compared_at_whole_blocks(other: str) -> None:
    """At one token, and then at every eighth: blocks are of 4 and 8 tokens. A change is where the last eight begin to
    keep their sign."""
    first, second = zoo.spec("deepseek-v4-flash-284b", tiny=True), zoo.spec(other, tiny=True)
    growth = pieces(first, BF16)
    for context in range(1, 100):
        assert value(growth, context) == compressed(first)(context)
    found: list[Change] = []
    differences = [compressed(first)(context) - compressed(second)(context) for context in range(4000)]
    signs = [(difference > 0) - (difference < 0) for difference in differences]
    for context in (1, *range(8, 4000, 8)):
        if not found or found[-1].sign != signs[context]:
            before = [n for n in range(max(context - 8, 1), context) if signs[n] != signs[context]]
            found.append(Change(max(before) + 1 if before else context, signs[context]))
    assert changes(growth, pieces(second, BF16)) == found
    assert len(found) > 1
    for free in (50_000, 100_000, 100_001, 123_456):
        fits = [context for context in range(4000) if compressed(first)(context) <= free]
        assert longest(growth, free) == max(fits, default=0)


@given(layers, st.integers(-10, 900))
def test_the_longest_context_is_that_of_a_search(kept: list[Kept], free: int) -> None:
    fits = [context for context in range(400) if bytes_at(kept, context) <= free]
    expected = None if len(fits) == 400 else max(fits, default=0)
    assert longest(pieces(decoder(kept), BF16), free) == expected


def test_two_models_of_the_zoo_cross_where_a_search_finds_it() -> None:
    gemma, llama = zoo.spec("gemma3-27b"), zoo.spec("llama3.1-8b")
    where = next(n for n in range(1, 10**5) if gemma.kv_bytes(n) < llama.kv_bytes(n))
    assert where == 8875
    found = changes(pieces(gemma, BF16), pieces(llama, BF16))
    assert found == [Change(1, 1), Change(where, -1)]


@over(zoo.names())
def test_the_last_piece_is_what_a_model_grows_by(name: str) -> None:
    last = pieces(zoo.spec(name), BF16)[-1]
    assert (last.fixed, last.slope) == zoo.spec(name).kv_growth()
