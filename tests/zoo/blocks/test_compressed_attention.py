"""Attention over a window and entries: against scores of all pairs, in every form that a pass may take."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.exact import BOUND, assert_equal
from zoo import CompressedAttention, Compressor, EntryIndexer, RMSNorm, RoPE
from zoo.core.cache import Cache, NoCache, prepare_forward
from zoo.core.ops import entry_attention as forms
from zoo.core.ops.indexing import NOT_CHOSEN
from zoo.costs import Window

DIM = 24
PLAIN = CompressedAttention(
    heads=4,
    head_dim=12,
    rope_dim=4,
    q_rank=10,
    groups=2,
    o_rank=5,
    window=6,
    norm=RMSNorm(1e-6, scale_in_fp32=True),
    q_norm=RMSNorm(1e-6, weight=False),
    rope=RoPE(1e2),
)
HCA = replace(PLAIN, compressor=Compressor(5))
# Of many heads few scores are relu's zero, among which any entry may be chosen.
CSA = replace(PLAIN, compressor=Compressor(2, overlap=True, indexer=EntryIndexer(heads=16, head_dim=6, k=4)))
KINDS = [PLAIN, HCA, CSA]
LENGTH = 40


def built(spec: CompressedAttention) -> nn.Module:
    module = spec.build(DIM)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(torch.randn(weight.shape) * (0.5 if weight.ndim == 2 else 1.0))
            if name.endswith("norm.weight"):
                weight.add_(1.0)
    return module


def given(length: int = LENGTH) -> Tensor:
    return torch.randn(2, length, DIM)


def whole(module: nn.Module, x: Tensor) -> Tensor:
    cache = NoCache(module.spec.cache_spec())
    return module(x, prepare_forward(0, x.shape[1], module.spec.tables(), [cache], dtype=torch.float64), cache)


def in_passes(module: nn.Module, x: Tensor, sizes: list[int], static: bool = False) -> Tensor:
    (cache,) = Cache([module.spec.cache_spec()], len(x), x.shape[1], x.dtype, x.device, static).layers
    outs, past = [], 0
    for part in x.split(sizes, dim=1):
        ctx = prepare_forward(past, part.shape[1], module.spec.tables(), [cache], dtype=torch.float64)
        outs.append(module(part, ctx, cache))
        past += part.shape[1]
    return torch.cat(outs, dim=1)


def expected(module: nn.Module, x: Tensor) -> Tensor:
    """With a loop over the queries, each over its own list of keys."""
    spec, positions = module.spec, torch.arange(x.shape[1])
    cache = NoCache(spec.cache_spec())
    ctx = prepare_forward(0, x.shape[1], spec.tables(), [cache], dtype=torch.float64)
    table = ctx.tables[spec.rope, spec.rope_dim]
    down, norm, up = module.q
    latent = norm(down(x))
    q = up(latent).unflatten(-1, (spec.heads, spec.head_dim))
    q = q * (q.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    q = spec.rope.rotate_last(q.transpose(1, 2), table, spec.rope_dim)
    keys = spec.rope.rotate_last(module.kv_norm(module.kv(x)), table, spec.rope_dim)
    entries = module.compressor(x, ctx, cache)[:, 0] if spec.compressor else None
    index = module.indexer(x, latent, ctx, cache, used=True) if spec.chosen else None
    out = torch.zeros(*q.shape, dtype=x.dtype)
    for b in range(len(x)):
        for i in positions.tolist():
            rows = [keys[b, j] for j in range(max(0, i - spec.window + 1), i + 1)]
            if entries is not None:
                seen = list(range((i + 1) // spec.compressor.every))
                if index is not None and len(seen) > index.k:
                    scores = (index.queries[b, i] @ index.keys[b, 0, seen].T).relu().T @ index.weights[b, i]
                    seen = scores.topk(index.k).indices.tolist()
                rows += [entries[b, e] for e in seen]
            stored = torch.stack(rows)
            for head in range(spec.heads):
                scores = torch.cat([stored @ q[b, head, i] * spec.head_dim**-0.5, module.sinks[head : head + 1]])
                out[b, head, i] = scores.softmax(0)[:-1] @ stored
    cos, sin = table
    out = spec.rope.rotate_last(out, (cos, -sin), spec.rope_dim).transpose(1, 2).flatten(2)
    groups = out.chunk(spec.groups, dim=-1)
    weights = module.o_groups.weight.chunk(spec.groups)
    return module.o(torch.cat([part @ weight.T for part, weight in zip(groups, weights, strict=True)], dim=-1))


@torch.no_grad()
@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.names()[0])
def test_one_pass_is_the_formula(spec: CompressedAttention) -> None:
    module, x = built(spec), given()
    assert_equal(whole(module, x), expected(module, x))


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("sizes", [[1] * LENGTH, [5, 1, 1, 13, 20], [33, 7], [3, 2, 1, 30, 1, 1, 1, 1]], ids=str)
@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.names()[0])
def test_passes_of_any_length_are_one_pass(spec: CompressedAttention, sizes: list[int], static: bool) -> None:
    """Over a cache."""
    module, x = built(spec), given()
    assert_equal(in_passes(module, x, sizes, static), whole(module, x))


@pytest.mark.parametrize("spec", [HCA, CSA], ids=lambda spec: spec.names()[0])
def test_with_gradients_and_under_one_mask_it_is_the_same(
    spec: CompressedAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients of all forms, for passes with and without a past."""
    module, x = built(spec), given()
    with torch.no_grad():
        plain = in_passes(module, x, [9, 31])
    gradients = []
    for masked in (False, True):
        if masked:
            monkeypatch.setattr(forms, "_entry_attention", None)
            monkeypatch.setattr(forms.torch.compiler, "is_compiling", lambda: True)
            monkeypatch.setattr(forms, "allows_operators", lambda *tensors: False)
        module.zero_grad()
        got = in_passes(module, x, [9, 31])
        assert_equal(got, plain)
        got.square().sum().backward()
        gradients.append({name: each.grad for name, each in module.named_parameters() if each.grad is not None})
    assert {name.split(".")[0] for name in gradients[0]} == {
        *("q", "kv", "kv_norm", "sinks", "o_groups", "o", "compressor")
    }
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        assert_equal(gradients[1][name], gradient)


@torch.no_grad()
@pytest.mark.parametrize(
    ("past", "new"), [(0, 1), (3, 1), (29, 1), (0, 5), (0, 37), (7, 22), (9, 1), (11, 70), (50, 9)]
)
@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.names()[0])
def test_flops_are_those_that_torch_counts(spec: CompressedAttention, past: int, new: int) -> None:
    module, x = built(spec), given(past + new)[:1]
    (cache,) = Cache([spec.cache_spec()], 1, past + new, x.dtype, x.device).layers
    if past:
        module(x[:, :past], prepare_forward(0, past, spec.tables(), [cache], dtype=torch.float64), cache)
    ctx = prepare_forward(past, new, spec.tables(), [cache], dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        module(x[:, past:], ctx, cache)
    assert counted.get_total_flops() == spec.flops(DIM, past, new, causal=False)
    assert spec.flops(DIM, past, new) <= spec.flops(DIM, past, new, causal=False)
    assert spec.flops(DIM, past, 1) == spec.flops(DIM, past, 1, causal=False)


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.names()[0])
def test_a_prefill_scores_the_pairs_of_its_tokens_one_by_one(spec: CompressedAttention) -> None:
    for past, new in ((0, 37), (7, 22)):
        parts = spec.flop_breakdown(DIM, past, new)
        alone = [spec.flop_breakdown(DIM, i, 1) for i in range(past, past + new)]
        for part in {"scores", "entries"} & parts.keys():
            assert parts[part] == sum(each[part] for each in alone)


@torch.no_grad()
def test_what_a_token_contributes_depends_on_its_distance() -> None:
    """Values are rotated with the keys, and the output is rotated back: positions may be shifted by whole blocks."""
    module, x = built(HCA), given(30)
    cache = NoCache(HCA.cache_spec())
    shifted = prepare_forward(0, 30, HCA.tables(), [cache], dtype=torch.float64)
    moved = torch.arange(30) + 10 * HCA.compressor.every
    tables = {(spec, width): spec.table(moved, width, torch.float64) for spec, width in HCA.tables()}
    got = module(x, replace(shifted, tables=tables), cache)
    assert_equal(got, whole(module, x))


@torch.no_grad()
def test_nothing_is_seen_of_a_block_before_it_is_complete() -> None:
    """A token beyond the window changes no output until its block ends, and then does."""
    spec = replace(HCA, window=1)
    module, x = built(spec), given(20)
    other = x.clone()
    other[:, 11] += 1.0
    moved = (whole(module, other) - whole(module, x)).abs().amax((0, 2)) > BOUND
    assert moved.tolist() == [i == 11 or i >= 14 for i in range(20)]


@torch.no_grad()
def test_places_of_a_window_are_where_the_cache_has_its_keys() -> None:
    """Before the ring is full, when it is, and past it: keys read at the places are those of the window."""
    for past, new, window in ((0, 9, 4), (3, 5, 4), (4, 3, 4), (10, 7, 4)):
        held = min(past, window)
        stored = [max(p for p in range(past) if p % window == i) for i in range(held)] + list(range(past, past + new))
        places = forms._places(torch.arange(past, past + new), past, held, window, Window(window))
        for i, row in enumerate(places.tolist()):
            seen = sorted(stored[place] for place in row if place != NOT_CHOSEN)
            assert seen == list(range(max(0, past + i - window + 1), past + i + 1))


def test_a_spec_that_makes_no_sense_is_refused() -> None:
    for change in ({"groups": 3}, {"rope_dim": 3}, {"rope_dim": 14}):
        with pytest.raises(Exception, match=next(iter(change))):
            replace(PLAIN, **change)
    with pytest.raises(Exception, match="indexer's head_dim"):
        replace(CSA, rope_dim=8)
    with pytest.raises(Exception, match="at least 2"):
        Compressor(1)


def test_words_and_cache() -> None:
    assert [spec.names() for spec in KINDS] == [
        ["SWA", "CompressedAttention"],
        ["HCA", "SWA", "CompressedAttention"],
        ["CSA", "SWA", "CompressedAttention"],
    ]
    assert [spec.cache_spec().describe() for spec in KINDS] == ["window 6", "window 6 + 1/5", "window 6 + 1/2"]
    fixed, slope = CSA.cache_spec().growth(2)
    assert slope == (12 + 6) * 2 / 2
    sizes = [CSA.cache_spec().nbytes(context, 2) for context in (20, 22, 24)]
    assert [b - a for a, b in pairwise(sizes)] == [2 * slope] * 2
    assert sizes[0] == fixed + 20 * slope
