"""Sums against the products that they stand for, and when they do."""

from __future__ import annotations

import pytest
import torch

from zoo.products import FEW, FEW_FLOAT32, PARTS, dot, few, side_by_side, sums, written


@pytest.mark.parametrize("rows", [1, 2, FEW, FEW_FLOAT32])
@pytest.mark.parametrize("out", [1, PARTS - 1, 7, 3 * PARTS])
def test_rows_side_by_side_are_a_product(rows: int, out: int) -> None:
    """In parts that need not be equal, nor as many as asked for; a matrix for each of several heads, too."""
    x, weight = torch.randn(rows, 5, dtype=torch.float64), torch.randn(out, 5, dtype=torch.float64)
    torch.testing.assert_close(side_by_side(x, weight), x @ weight.T)
    x, weight = torch.randn(rows, 3, 5, dtype=torch.float64), torch.randn(3, out, 5, dtype=torch.float64)
    torch.testing.assert_close(side_by_side(x, weight), torch.einsum("nhi,hoi->nho", x, weight))


def test_narrow_numbers_are_added_up_in_float32() -> None:
    """4,097 ones: in bfloat16 a sum would stop growing at 256, and say 4,096 at last."""
    ones = torch.ones(4097, dtype=torch.bfloat16)
    out = dot(ones[None], ones)
    assert out.dtype == torch.float32
    assert out.item() == 4097
    assert side_by_side(ones[None], ones[None]).dtype == torch.bfloat16


def test_what_is_written_is_the_same_numbers_wherever_they_lie() -> None:
    x = torch.randn(4, 6)
    for part in (x, x[1:, 2:], x.T, x[:, ::2], x[2]):
        assert torch.equal(written(part), part)


def test_uncompiled_nothing_is_a_sum() -> None:
    assert not sums(torch.randn(1, 1, 4))


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((1, 1, 4), torch.float32, True),
        ((FEW, 1, 4), torch.bfloat16, True),
        ((FEW + 1, 1, 4), torch.bfloat16, False),
        ((FEW_FLOAT32, 1, 4), torch.float32, True),
        ((FEW_FLOAT32 + 1, 1, 4), torch.float32, False),
        ((1, 2, 4), torch.float32, False),
        ((1, 4), torch.float32, False),
    ],
)
def test_compiled_lone_tokens_of_few_sequences_are(
    shape: tuple[int, ...], dtype: torch.dtype, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert sums(torch.randn(shape).to(dtype)) is expected


def test_on_a_gpu_experts_are_gathered_for_any_number_of_lone_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to wait for their counts, which a CUDA graph cannot; and no product is a sum."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)

    class Elsewhere:
        ndim, shape, dtype, device = 3, (50, 1, 4), torch.bfloat16, torch.device("cuda")

    assert few(Elsewhere())
    assert not sums(Elsewhere())
