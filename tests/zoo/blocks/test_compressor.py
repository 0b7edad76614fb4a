"""Entries of blocks of tokens: against their formula, whatever the lengths of passes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.exact import assert_equal
from zoo import Compressor, EntryIndexer, RMSNorm, RoPE
from zoo.blocks.compressor import _Compressor
from zoo.core.cache import Cache, NoCache, prepare_forward
from zoo.core.forward_context import block_count, blocks_of
from zoo.core.ops.block_pooling import Pooled, nothing
from zoo.costs import CacheSpec, Window

DIM, WIDTH, ROPE_DIM, ROPE, NORM = 12, 8, 4, RoPE(1e2), RMSNorm(1e-6, scale_in_fp32=True)
KINDS = [Compressor(5), Compressor(4, overlap=True), Compressor(2, overlap=True)]


def built(spec: Compressor) -> _Compressor:
    module = spec.build(DIM, WIDTH, NORM, ROPE, ROPE_DIM, "entries")
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape))
    return module


def cache_spec(spec: Compressor) -> CacheSpec:
    entries, states = zip(*spec.kept(WIDTH), strict=True)
    return CacheSpec((("kv", (1, WIDTH)),), Window(3), states, entries)


def expected(module: _Compressor, x: Tensor) -> Tensor:
    """The entries of all complete blocks (b, blocks, width), term by term."""
    every, overlap = module.spec.every, module.spec.overlap
    values, scores = module.kv(x), module.gate(x)
    entries = []
    for block in range(x.shape[1] // every):
        terms = []  # (value, score) of each token, (b, width)
        for place in range(every):
            token = block * every + place
            own = slice(WIDTH, None) if overlap else slice(None)
            terms.append((values[:, token, own], scores[:, token, own] + module.position_bias[place, own]))
            if overlap and block:
                earlier = token - every
                bias = module.position_bias[place, :WIDTH]
                terms.append((values[:, earlier, :WIDTH], scores[:, earlier, :WIDTH] + bias))
        weights = torch.stack([score for _, score in terms]).softmax(0)
        made = module.norm(sum(weight * value for weight, (value, _) in zip(weights, terms, strict=True)))
        table = ROPE.table(torch.tensor([block * every]), ROPE_DIM, torch.float64)
        entries.append(ROPE.rotate_last(made.unsqueeze(1), table, ROPE_DIM).squeeze(1))
    return torch.stack(entries, dim=1)


def tables(module: nn.Module) -> list[tuple[object, int]]:
    return [(module.starts, ROPE_DIM)]


@torch.no_grad()
@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.describe())
def test_entries_are_the_formula(spec: Compressor) -> None:
    """Of a pass without a cache, whose last block is not complete."""
    module, x = built(spec), torch.randn(2, 4 * spec.every + 1, DIM)
    cache = NoCache(cache_spec(spec))
    got = module(x, prepare_forward(0, x.shape[1], tables(module), [cache], dtype=torch.float64), cache)
    assert_equal(got[:, 0, :4], expected(module, x))


@torch.no_grad()
@given(st.sampled_from(KINDS), st.lists(st.integers(1, 11), min_size=1, max_size=6), st.booleans())
def test_passes_of_any_length_give_the_same_entries(spec: Compressor, sizes: list[int], static: bool) -> None:
    """At places that do not depend on the lengths. What a block has so far is in a state."""
    module, x = built(spec), torch.randn(2, sum(sizes), DIM)
    kept = cache_spec(spec)
    whole = Cache([kept], 2, sum(sizes) + 3, torch.float64, torch.device("cpu"), static)
    (layer,), past, complete = whole.layers, 0, x.shape[1] // spec.every
    for part in x.split(sizes, dim=1):
        new = part.shape[1]
        stream = module(part, prepare_forward(past, new, tables(module), [layer], dtype=torch.float64), layer)
        past += new
        if new == 1 and not static:
            assert stream.shape[2] == past // spec.every
    if complete:
        assert_equal(layer.entries["entries"][:, 0, :complete], expected(module, x))
    assert {name: state.dtype for name, state in layer.states.items()} == {"pending entries": torch.float64}
    assert whole.nbytes == 2 * kept.nbytes(sum(sizes) + 3, 8)


@given(st.integers(0, 60), st.integers(1, 40), st.integers(2, 9))
def test_blocks_of_tokens_in_a_row(past: int, new: int, every: int) -> None:
    numbers = blocks_of(torch.arange(past, past + new), every).tolist()
    touched = sorted({token // every for token in range(past, past + new)})
    assert len(numbers) == block_count(new, every)
    assert numbers == touched + [touched[-1]] * (len(numbers) - len(touched))


def test_a_merge_with_nothing_changes_nothing() -> None:
    """Exactly, so that stale averages of a cache leave no trace."""
    some = Pooled(torch.randn(1, 3, 4), torch.randn(1, 3, 4))
    none = Pooled(torch.full((1, 3, 4), 1e6), torch.randn(1, 3, 4)).where(torch.tensor([False]))
    assert (none.weight == nothing(torch.float64)).all()
    for merged in (some.merged(none), none.merged(some)):
        assert torch.equal(merged.mean, some.mean)
        assert torch.equal(merged.weight, some.weight)


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.describe())
def test_costs(spec: Compressor) -> None:
    module = built(spec)
    params = sum(each.numel() for each in module.parameters())
    assert spec.pooling_params(DIM, WIDTH) + NORM.params(WIDTH) == params
    assert cache_spec(spec).entry_growth(2) * spec.every == 2 * WIDTH


def test_an_indexer_has_a_compressor_of_its_own() -> None:
    spec = Compressor(4, overlap=True, indexer=EntryIndexer(heads=3, head_dim=6, k=2))
    module = spec.build_indexer(DIM, 10, NORM, ROPE, ROPE_DIM)
    assert module is not None
    assert sum(each.numel() for each in module.parameters()) == spec.indexer_params(DIM, 10, NORM)
    assert not any(each.requires_grad for each in module.parameters())
    assert [(entries.name, entries.shape) for entries, _ in spec.kept(WIDTH)] == [
        ("entries", (1, WIDTH)),
        ("index entries", (1, 6)),
    ]
