"""The plain form of each operation equals the public function in float64, over many shapes.

Attention, recurrences, convolution and attention over chosen keys are compared in other files.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.exact import assert_equal
from zoo import ClampedSwiGLU
from zoo.core.forward_context import ReachMask, causal, visible
from zoo.core.ops import block_pooling, entry_attention, experts, indexing, latent_attention, linear
from zoo.core.ops.indexing import Index
from zoo.costs import Window

pytestmark = pytest.mark.usefixtures("_float64")
PASSES = [(1, 1), (1, 9), (4, 9), (5, 5), (30, 70)]  # new tokens and all keys


def mask_of(new: int, keys: int) -> Tensor | None:
    """Returns the mask that layer caches make."""
    return None if new in (1, keys) else visible(torch.arange(keys - new, keys), torch.arange(keys))


def test_linear() -> None:
    for shape, bias in product([(6,), (1, 6), (2, 3, 6), (0, 6)], [None, torch.randn(5)]):
        x, weight = torch.randn(shape), torch.randn(5, 6)
        assert_equal(linear.linear(x, weight, bias), linear.plain(x, weight, bias))


def one_expert(linears: experts.Linears, combine: experts.Combine, e: int, x: Tensor) -> Tensor:
    return combine(lambda name, x: experts.expert_linear(e, x, *linears[name]), x)


@pytest.mark.parametrize("differentiates", [False, True])
@pytest.mark.parametrize("scales_input", [False, True])
def test_mixtures(scales_input: bool, differentiates: bool) -> None:
    """Experts are stacked or separate, with or without biases, and some are chosen by no token."""
    join, count, dim, hidden = ClampedSwiGLU(1.7, 1.0).join, 5, 8, 6
    sizes = {"gate": (hidden, dim), "up": (hidden, dim), "down": (dim, hidden)}

    def combine(apply: experts.Apply, x: Tensor) -> Tensor:
        return apply("down", join(apply("gate", x), apply("up", x)))

    for (b, t, k), has_bias in product([(1, 1, 1), (1, 9, 2), (3, 5, 3), (2, 40, 2)], [False, True]):
        linears: experts.Linears = {
            name: (torch.randn(count, *size), torch.randn(count, size[0]) if has_bias else None)
            for name, size in sizes.items()
        }

        x, weights = torch.randn(b, t, dim), torch.rand(b, t, k)
        chosen = torch.rand(b, t, count - 1).argsort(-1)[..., :k]
        each = [partial(one_expert, linears, combine, e) for e in range(count)]
        expected = experts.plain(x, weights, chosen, each, scales_input)
        with torch.set_grad_enabled(differentiates):
            stacked = experts.mixture(x, weights, chosen, linears, combine, join, scales_input)
            assert_equal(stacked, expected)
            assert_equal(experts.separate_mixture(x, weights, chosen, each, scales_input), expected)


def latents(new: int, keys: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns queries of 3 heads, latents of rank 10 with 4 rotary elements, and the maps to keys of 6 and values of
    5."""
    return torch.randn(2, 3, new, 6), torch.randn(2, 3, new, 4), torch.randn(2, 1, keys, 14), torch.randn(3, 11, 10)


@pytest.mark.parametrize("absorbs", [True, False])
def test_latent_attention(absorbs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_attention, "absorbing_is_cheaper", lambda *lengths: absorbs)
    for new, keys in PASSES:
        given, mask = latents(new, keys), mask_of(new, keys)
        expected = latent_attention.plain(*given, mask, 0.3)
        for k in (5, keys):
            chosen = indexing.top_keys(torch.randn(2, new, keys), k, causal(new, keys, given[0].device))
            seen = indexing.sees(chosen, keys)
            for differentiates in (False, True):
                with torch.set_grad_enabled(differentiates):
                    found = latent_attention.sparse_latent_attention(
                        *given, chosen, mask, 0.3, lambda mask, given=given: latent_attention.plain(*given, mask, 0.3)
                    )
                assert_equal(found, latent_attention.plain(*given, seen, 0.3))
        assert_equal(latent_attention.latent_attention(*given, mask, 0.3), expected)


@pytest.mark.parametrize("differentiates", [False, True])
def test_entry_attention(differentiates: bool) -> None:
    window, every, k = 6, 4, 3
    for (new, tokens), has_index in product([(5, 5), (4, 9), (20, 33), (40, 40)], [False, True]):
        past, held = tokens - new, min(tokens - new, window)
        positions, stored = torch.arange(past, tokens), tokens // every
        keys, entries = torch.randn(2, 1, held + new, 8), torch.randn(2, 1, stored, 8)
        q, sinks, index = torch.randn(2, 3, new, 8), torch.randn(3), None
        mask = ReachMask(positions, torch.arange(past - held, tokens).roll(0), Window(window))
        if has_index:
            index = Index(torch.randn(2, new, 3, 8), torch.randn(2, new, 3), torch.randn(2, 1, stored, 8), k)
        expected = entry_attention.plain(q, keys, entries, mask, positions, every, 0.3, sinks, index)
        if past and not differentiates:  # as a ring holds the keys of earlier tokens
            ring = torch.arange(past - held, past)
            place = (ring % window).argsort()
            keys[:, :, :held] = keys[:, :, place]
            mask = mask._replace(keys=torch.cat([ring[place], positions]))
        so_far = torch.empty(tokens)
        with torch.set_grad_enabled(differentiates):
            found = entry_attention.entry_attention(q, keys, entries, mask, positions, so_far, every, 0.3, sinks, index)
        assert_equal(found, expected)


def test_pooled_blocks() -> None:
    for first, new, every in product((0, 3, 8), (2, 5, 13), (2, 4)):
        values, scores = torch.randn(2, new, 5), torch.randn(2, new, 5)
        pending = block_pooling.Pooled(torch.randn(2, 1, 5), torch.randn(2, 1, 5))
        given = values, scores, torch.arange(first, first + new), every, pending
        expected = block_pooling.plain(*given)
        for one, other in zip(block_pooling.pooled(*given), expected, strict=True):
            assert_equal(one[:, : other.shape[1]], other)


def test_a_merge_with_nothing_changes_nothing() -> None:
    """The result is exactly equal, so that stale averages in a cache have no effect."""
    some = block_pooling.Pooled(torch.randn(1, 3, 4), torch.randn(1, 3, 4))
    none = block_pooling.Pooled(torch.full((1, 3, 4), 1e6), torch.randn(1, 3, 4)).where(torch.tensor([False]))
    assert (none.weight == block_pooling.nothing(torch.float64)).all()
    for merged in (some.merged(none), none.merged(some)):
        assert torch.equal(merged.mean, some.mean)
        assert torch.equal(merged.weight, some.weight)


def test_every_operation_has_a_plain_form_and_blocks_do_not_choose() -> None:
    """Files with further kernels of an operation need no plain form of their own: it is that of the operation."""
    zoo = Path(linear.__file__).parents[2]
    kernels = {"__init__", "flash", "chunk_loop", "routed_glu"}
    files = {file.stem: file.read_text(encoding="utf-8") for file in (zoo / "core" / "ops").glob("*.py")}
    assert {name for name, text in files.items() if "\ndef plain" not in text} == kernels
    asked = "is_compiling", "is_exporting", "is_grad_enabled", "device.type", "is_cuda", "is_autocast_enabled"
    for file in (zoo / "blocks").glob("*.py"):
        assert not [word for word in asked if word in file.read_text(encoding="utf-8")], file.name
