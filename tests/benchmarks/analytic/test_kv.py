"""Cache rows against integers that were derived without this code (tests/data), and against storage; growth against a
search through every context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zoo
from benchmarks.analytic.kv import (
    Change,
    InferenceConfig,
    Piece,
    cache_row,
    changes,
    crossing_row,
    fit_row,
    longest,
    pieces,
    usual_formula_bytes,
)
from benchmarks.analytic.models import NamedSpec, chosen, one
from benchmarks.output.show import smaller_at
from tests.presets import over, representatives
from tests.reference import kv_reference, published
from zoo.core.cache import Cache

GOLDEN = kv_reference()
CONTEXTS = {"bytes_4k": 4096, "bytes_32k": 32_768, "bytes_128k": 131_072}
GIB = 2**30


def test_every_published_model_has_golden_integers() -> None:
    assert GOLDEN.keys() == published().keys()


@over(GOLDEN)
def test_bytes_are_the_golden_ones(name: str) -> None:
    rows = [cache_row(one(name), context, InferenceConfig()) for context in CONTEXTS.values()]
    assert [row["kv_bytes"] for row in rows] == [GOLDEN[name][key] for key in CONTEXTS]
    assert {row["kv_fixed_bytes"] for row in rows} == {GOLDEN[name]["fixed_bytes"]}
    assert {row["kv_bytes_per_token"] for row in rows} == {GOLDEN[name]["bytes_per_token"]}


def test_batch_and_dtype_multiply() -> None:
    row = cache_row(one("gemma3-27b"), 32_768, InferenceConfig(batch=8, cache=torch.float8_e4m3fn))
    assert row["kv_bytes"] == 8 * GOLDEN["gemma3-27b"]["bytes_32k"] // 2
    assert row["kv_bytes_per_token"] == GOLDEN["gemma3-27b"]["bytes_per_token"] // 2
    assert (row["batch"], row["cache_dtype"]) == (8, "float8_e4m3fn")


@over(zoo.names(), representatives())
def test_a_full_size_cache_allocates_what_is_printed(name: str) -> None:
    """The cache is allocated without the weights: in memory if it is small, else on the meta device."""
    spec = zoo.spec(name)
    device = torch.device("cpu" if spec.kv_bytes(4096) < 200e6 else "meta")
    row = cache_row(one(name), 4096, InferenceConfig(batch=2))
    stored = [layer.cache_spec() for layer in spec.layers]
    assert Cache(stored, 2, 4096, torch.bfloat16, device).nbytes == row["kv_bytes"]


def test_some_full_size_caches_are_allocated_in_memory() -> None:
    assert sum(zoo.spec(name).kv_bytes(4096) < 200e6 for name in zoo.names()) >= 5


# Figures of other calculators for the same models, in bytes per token. They ignore windows and take dim / heads for
# head_dim.
USUAL = {
    "llama3.1-8b": 131_072,
    "gemma3-27b": 2 * 62 * 16 * 168 * 2,
    "qwen3-0.6b": 2 * 28 * 8 * 64 * 2,
    "gpt-oss-20b": 2 * 24 * 8 * 45 * 2,
}


@pytest.mark.parametrize("name", USUAL)
def test_the_usual_formula_gives_the_figures_of_other_calculators(name: str) -> None:
    assert usual_formula_bytes(zoo.spec(name), 1000, 3, torch.bfloat16) == 3000 * USUAL[name]


def test_for_mla_the_usual_formula_expands_the_latent() -> None:
    row = cache_row(one("deepseek-v3"), 1000, InferenceConfig())
    assert row["usual_formula_kv_bytes"] == 1000 * 4_997_120
    assert row["usual_formula_error"] == pytest.approx(4_997_120 / 70_272 - 1)
    assert "expanded" in row["usual_formula"]


def fit(name: str, memory: int, **config: object) -> dict[str, object]:
    return fit_row(one(name), memory, InferenceConfig(**config))  # type: ignore[arg-type]


def test_the_context_that_fits_is_the_longest_that_does() -> None:
    spec = zoo.spec("qwen3-8b")
    row = fit("qwen3-8b", 24 * GIB, batch=3)
    longest = row["context_that_fits"]
    assert isinstance(longest, int)
    room = 24 * GIB - 2 * spec.params()
    assert spec.kv_bytes(longest, 3) <= room < spec.kv_bytes(longest + 1, 3)
    assert row["limit"] == "cache"


def test_the_limit_is_the_weights_the_cache_or_the_models_own_context() -> None:
    assert fit("llama3.1-70b", 80 * GIB)["limit"] == "weights"
    assert fit("llama3.1-70b", 80 * GIB)["context_that_fits"] == 0
    assert fit("gemma3-27b", 54 * GIB)["limit"] == "cache"
    assert fit("gemma3-27b", 80 * GIB)["limit"] == "context"


def test_a_cache_that_stops_growing_fits_at_any_context() -> None:
    windowed = zoo.swap(zoo.spec("qwen3-0.6b"), zoo.GQA, zoo.spec("gemma3-1b").layers[0].mixer)
    row = fit_row(NamedSpec("windowed", windowed), 80 * GIB, InferenceConfig())
    assert (row["context_that_fits"], row["limit"]) == (None, "context")


@pytest.mark.parametrize(
    ("name", "against", "contexts"),
    [
        ("gemma3-27b", "llama3.1-8b", "from 8,875 on"),
        ("llama3.1-8b", "gemma3-27b", "up to 8,874"),
        ("gpt-oss-20b", "llama3.1-8b", "at every context"),
        ("olmo2-7b", "llama3.1-8b", "never"),
        ("llama3-8b", "llama3.1-8b", "never: both are the same"),
    ],
)
def test_crossings_as_text(name: str, against: str, contexts: str) -> None:
    assert smaller_at(crossing_row(one(name), one(against), InferenceConfig()), name) == contexts


def test_a_crossing_there_and_back_is_shown_whole() -> None:
    smaller = [(1, "a"), (10, None), (11, "b"), (20, "a"), (30, "b")]
    row = {"changes": [{"from_context": start, "smaller": model} for start, model in smaller]}
    assert smaller_at(row, "a") == "up to 9, 20 to 29"
    assert smaller_at(row, "b") == "11 to 19, from 30 on"


def test_a_swapped_model_is_compared_with_its_original() -> None:
    _, windowed = chosen(["qwen3-8b"], ["GQA(window=4096)"])
    row = crossing_row(windowed, one("qwen3-8b"), InferenceConfig())
    assert [change["smaller"] for change in row["changes"]] == [None, "qwen3-8b*"]
    assert smaller_at(row, "qwen3-8b*") == "from 4,097 on"


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
    """Returns a function from the context to the bytes of a cache, computed from the layers' own specs."""
    return lambda context: sum(layer.cache_spec().nbytes(context, 2) for layer in spec.layers)


@pytest.mark.parametrize("other", ["gemma3-1b", "llama3-8b"])
def test_caches_with_entries_are_compared_at_whole_blocks(other: str) -> None:
    """The caches are compared at one token, and then at every eighth, because blocks have 4 and 8 tokens. A change
    starts where the sign begins to hold up to the next such token."""
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


@over(zoo.names())
def test_the_last_piece_is_what_a_model_grows_by(name: str) -> None:
    last = pieces(zoo.spec(name), BF16)[-1]
    assert (last.fixed, last.slope) == zoo.spec(name).kv_growth()
