"""Each form of attention against the plain one in float64."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch._dynamo import config as dynamo

from tests.exact import assert_computes, assert_equal
from tests.models import has_compiler
from zoo.core import kernels
from zoo.core.forward_context import ReachMask, causal, visible
from zoo.core.ops import attention as module
from zoo.core.ops.attention import attention, plain
from zoo.core.ops.flash import flash_attention
from zoo.costs import Chunk, Full, Reach, Window

pytestmark = pytest.mark.usefixtures("_float64")


def inputs(heads: int, kv_heads: int, new: int, keys: int, value: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((2, heads, new, 8), (2, kv_heads, keys, 8), (2, kv_heads, keys, value))
    q, k, v = (torch.randn(shape) * 2 for shape in shapes)
    return q, k, v


# (new, keys, window): a prefill, a single query over a past, a chunk over a past, a windowed chunk.
PASSES = {
    "prefill": (5, 5, None),
    "decode": (1, 7, None),
    "first": (1, 1, None),
    "chunk": (3, 7, None),
    "windowed": (5, 9, 3),
}


def mask_of(new: int, keys: int, window: int | None) -> Tensor | None:
    """Returns the mask that layer caches make: None for a single query or a prefill into an empty cache."""
    if window is None and (new in (1, keys)):
        return None
    return visible(torch.arange(keys - new, keys), torch.arange(keys), Window(window) if window else Full())


@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("case", PASSES)
@pytest.mark.parametrize("value", [6, 8])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 2), (4, 1), (1, 1)])
def test_attention_is_a_softmax_over_the_keys_seen(
    heads: int, kv_heads: int, value: int, case: str, with_sinks: bool
) -> None:
    """Multi-head, grouped and multi-query, with values narrower than keys and as wide."""
    new, keys, window = PASSES[case]
    q, k, v = inputs(heads, kv_heads, new, keys, value)
    mask, sinks = mask_of(new, keys, window), torch.randn(heads) if with_sinks else None
    out = attention(q, k, v, mask, 0.3, sinks)
    assert_equal(out, plain(q, k, v, mask, 0.3, sinks))


@pytest.mark.parametrize("kernel", [module.has_flash_kernel, lambda q: False], ids=["flash", "explicit"])
@pytest.mark.parametrize("differentiates", [False, True])
@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("new", [1, 5])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (4, 1), (2, 2)])
def test_a_mask_of_each_sequence(
    heads: int,
    kv_heads: int,
    new: int,
    with_sinks: bool,
    differentiates: bool,
    kernel: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each sequence of the batch sees different keys, as with chosen keys."""
    monkeypatch.setattr(module, "has_flash_kernel", kernel)
    q, k, v = inputs(heads, kv_heads, new, 9, 8)
    mask, sinks = torch.rand(2, 1, new, 9) < 0.5, torch.randn(heads) if with_sinks else None
    mask[..., 0] = True
    with torch.set_grad_enabled(differentiates):
        out = attention(q, k, v, mask, 0.3, sinks)
    for b in range(2):
        one = slice(b, b + 1)
        expected = plain(q[one], k[one], v[one], mask[b, 0], 0.3, sinks)
        assert_equal(out[one], expected)


@torch.no_grad()
@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize(
    "reach", [kind(size) for kind in (Window, Chunk) for size in (1, 2, 5, 150)], ids=Reach.describe
)
@pytest.mark.parametrize("new", [2, 5, 11, 350])
def test_the_mask_of_a_reach_equals_the_mask_it_describes(new: int, reach: Reach, with_sinks: bool) -> None:
    """The pass follows no tokens, a part of the reach, and a full reach in the storage order of a ring."""
    sinks, size = torch.randn(4) if with_sinks else None, reach.limit or 0
    for past in {0, size // 2, size, 2 * size + size // 3}:
        held = torch.arange(past - reach.held(past), past)
        held = held.roll(past // 3) if isinstance(reach, Window) else held
        queries = torch.arange(past, past + new)
        keys = torch.cat([held, queries])
        q, k, v = inputs(4, 2, new, len(keys))
        drawn = attention(q, k, v, visible(queries, keys, reach), 0.3, sinks)
        assert_equal(attention(q, k, v, ReachMask(queries, keys, reach), 0.3, sinks), drawn)


@torch.no_grad()
@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("case", PASSES)
def test_capped_scores(case: str, with_sinks: bool) -> None:
    """Scores become cap * tanh(score / cap) before the mask, also in blocks of queries and compiled."""
    new, keys, window = PASSES[case]
    q, k, v = inputs(4, 2, new, keys)
    sinks = torch.randn(4) if with_sinks else None
    mask = mask_of(new, keys, window)
    expected = plain(q, k, v, mask, 3.0, sinks, 0.5)
    for call in (attention, torch.compile(attention, backend="eager")):
        assert_equal(call(q, k, v, mask, 3.0, sinks, 0.5), expected)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "BLOCK_QUERIES", 2)
        assert_equal(attention(q, k, v, mask, 3.0, sinks, 0.5), expected)


@torch.no_grad()
@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
def test_capped_scores_of_one_token_compile_for_an_unknown_number_of_keys() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attention)
    for keys in (1, 7, 40):
        q, k, v = (each.double() for each in inputs(4, 2, 1, keys))
        for each in (k, v):
            torch._dynamo.decorators.mark_unbacked(each, 2)
        assert_equal(compiled(q, k, v, None, 0.5, None, 5.0), plain(q, k, v, None, 0.5, None, 5.0))


def test_capped_scores_of_every_length_have_one_graph() -> None:
    torch._dynamo.reset()  # graphs of other tests in this process count towards the limit
    compiled = torch.compile(attention, backend="eager", dynamic=True)
    with dynamo.patch(fail_on_recompile_limit_hit=True):
        for new in range(2, 2 + 2 * dynamo.recompile_limit):
            q, k, v = (torch.randn(1, 2, new, 8) for _ in range(3))
            out = compiled(q, k, v, None, 0.5, None, 5.0)
            assert_equal(out, attention(q, k, v, None, 0.5, None, 5.0))


@torch.no_grad()
@pytest.mark.parametrize("case", PASSES)
def test_the_flash_kernel_returns_the_denominator_of_the_explicit_softmax(case: str) -> None:
    new, keys, window = PASSES[case]
    mask, causal = mask_of(new, keys, window), new == keys and new > 1
    drawn = torch.ones(new, keys, dtype=torch.bool).tril() if causal else mask

    def plain(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return module._explicit_attention(q, k, v, drawn, 0.3)

    def flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return flash_attention(q, k, v, mask, causal, 0.3)

    def strided(*given: Tensor) -> tuple[Tensor, Tensor]:
        return flash(*(x.transpose(2, 3).contiguous().transpose(2, 3) for x in given))  # no head's elements contiguous

    for call in (flash, strided):
        assert_computes(call, plain, lambda: inputs(4, 2, new, keys, value=8))


@torch.no_grad()
@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "value"), [(4, 2, 6), (6, 1, 8), (2, 2, 8)])
@pytest.mark.parametrize("past", [0, 40])
def test_prefill_in_blocks_equals_explicit_attention(
    heads: int,
    kv_heads: int,
    value: int,
    past: int,
    dtype: torch.dtype,
    with_sinks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Queries of two sequences are in several blocks, in float32 and float64 too."""
    for constant, small in (("MIN_MULTIPLY_ADDS", 0), ("BLOCK_QUERIES", 32), ("MIN_BLOCK_ROWS", 128)):
        monkeypatch.setattr(module, constant, small)
    blocks = Mock(wraps=module._prefill_in_blocks)
    monkeypatch.setattr(module, "_prefill_in_blocks", blocks)
    new = module.MIN_BLOCK_ROWS + 77
    sinks = torch.randn(heads) if with_sinks else None
    mask = visible(torch.arange(past, past + new), torch.arange(past + new))

    def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, total = module._explicit_attention(q, k, v, mask, 0.3)
        return module._apply_sinks(out, total, None if sinks is None else sinks[:, None]).to(q.dtype)

    def in_blocks(q: Tensor, k: Tensor, v: Tensor, drawn: Tensor | None) -> Tensor:
        with kernels.using({"attention prefill": "blocks"}):
            return attention(q, k, v, drawn, 0.3, sinks)

    for drawn in (mask, None) if past == 0 else (mask,):
        given = partial(inputs, heads, kv_heads, new, past + new, value)
        assert_computes(partial(in_blocks, drawn=drawn), explicit, given, [dtype])
        assert blocks.called
        blocks.reset_mock()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_with_more_heads_on_one_key_than_rows(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_MULTIPLY_ADDS", 0)

    def blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with kernels.using({"attention prefill": "blocks"}):
            return attention(q, k, v, None, 0.3)

    def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return module._explicit_attention(q, k, v, causal(3, 3, q.device), 0.3)[0]

    assert_computes(blocks, explicit, lambda: inputs(module.MIN_BLOCK_ROWS + 3, 1, 3, 3), [dtype])


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("new", [1, 9])
def test_autocast_is_respected(new: int, with_sinks: bool, window: int | None) -> None:
    """The result has the dtypes of softmax and products that torch casts itself, eager and compiled."""
    queries, keys = torch.arange(9 - new, 9), torch.arange(9)
    mask = (
        ReachMask(queries, keys, Window(window))
        if window and new > 1
        else (None if new in (1, 9) else visible(queries, keys))
    )
    sinks = torch.randn(4) if with_sinks else None
    drawn = visible(queries, keys, Window(window) if window and new > 1 else Full())

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=q.dtype == torch.float32):
            scores = (q @ k.repeat_interleave(2, dim=1).mT * 0.3).masked_fill(~drawn, float("-inf"))
            if sinks is not None:
                scores = torch.cat([scores, sinks[:, None, None].to(scores.dtype).expand(2, -1, new, 1)], dim=-1)
            out = scores.softmax(-1)[..., :9] @ v.repeat_interleave(2, dim=1)
        return out if q.dtype == torch.float64 else out.bfloat16()

    for function in (attention, torch.compile(attention, backend="eager")):

        def call(q: Tensor, k: Tensor, v: Tensor, function: Any = function) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return function(q, k, v, mask, 0.3, sinks).bfloat16()

        assert_computes(call, plain, lambda: inputs(4, 2, new, 9, value=8), [torch.float32])


@pytest.mark.parametrize(
    ("new", "value"),
    [(1, 5), (3, 5), (1, module.MIN_WHOLE_WIDTH), (1, 2 * module.MIN_WHOLE_WIDTH), (3, module.MIN_WHOLE_WIDTH)],
)
@pytest.mark.parametrize("with_mask", [False, True], ids=["", "mask"])
def test_explicit_attention_by_reductions_equals_matrix_products(with_mask: bool, new: int, value: int) -> None:
    """Values are read as a whole or in parts."""
    q, k, v = inputs(4, 4, new, 7, value)
    mask = visible(torch.arange(7 - new, 7), torch.arange(7), Window(3)) if with_mask else None
    for reductions, products in zip(
        module._explicit_attention(q, k, v, mask, 0.3, True),
        module._explicit_attention(q, k, v, mask, 0.3),
        strict=True,
    ):
        assert_equal(reductions, products)


@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("case", PASSES)
def test_narrow_dtypes_are_as_near_as_the_explicit_softmax(case: str, with_sinks: bool) -> None:
    new, keys, window = PASSES[case]
    mask, sinks = mask_of(new, keys, window), torch.randn(4).bfloat16() if with_sinks else None
    drawn = causal(new, keys, torch.device("cpu")) if mask is None else mask

    def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, total = module._explicit_attention(q, k, v, drawn, 0.3)
        return module._apply_sinks(out, total, None if sinks is None else sinks[:, None]).to(q.dtype)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, mask, 0.3, None if sinks is None else sinks.to(q.dtype))

    assert_computes(call, explicit, lambda: inputs(4, 2, new, keys))


def test_large_scores_do_not_overflow() -> None:
    q, k, v = inputs(4, 2, 5, 5)
    for sinks in (None, torch.tensor([500.0, -500.0, 0.0, 80.0])):
        out = attention(q * 100, k * 100, v, None, 1.0, sinks)
        assert out.isfinite().all()
        assert_equal(out, plain(q * 100, k * 100, v, None, 1.0, sinks))
