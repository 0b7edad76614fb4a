"""Products by a library, sums against the products that they stand for, and when they do."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from zoo import products
from zoo.products import FEW, PARTS, dot, few, product, side_by_side, sums, written


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 3, 6), (0, 6)], ids=str)
@pytest.mark.parametrize("small", [0, products.SMALL], ids=["by oneDNN", ""])
def test_a_product_is_a_linear_map(
    small: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    turned: bool,
    bias: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a matrix that lies column by column, too; and the same with gradients as without."""
    monkeypatch.setattr(products, "SMALL", small)
    x, weight = torch.randn(shape).to(dtype), torch.randn(5, 6).to(dtype)
    weight = weight.T.contiguous().T if turned else weight
    given = torch.randn(5).to(dtype) if bias else None
    near = 4e-2 if dtype == torch.bfloat16 else 1e-5
    expected = torch.einsum("...i,oi->...o", x.double(), weight.double()) + (0 if given is None else given)
    for with_gradients in (False, True):
        with torch.set_grad_enabled(with_gradients):
            torch.testing.assert_close(product(x, weight, given), expected, rtol=near, atol=near, check_dtype=False)


@torch.no_grad()
def test_its_arithmetic_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SMALL", 0)
    with FlopCounterMode(display=False) as counted:
        product(torch.randn(2, 3, 6), torch.randn(5, 6))
    assert counted.get_total_flops() == 2 * 2 * 3 * 5 * 6


@torch.no_grad()
def test_compiled_it_is_the_same() -> None:
    x, weight, bias = torch.randn(2, 3, 6), torch.randn(5, 6), torch.randn(5)
    made = torch.compile(product, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(made(x, weight, bias), product(x, weight, bias))
    torch.testing.assert_close(made(x, weight), product(x, weight))


@pytest.mark.parametrize("rows", [1, 2, FEW, 2 * FEW])
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
        ((FEW, 1, 4), torch.float32, True),
        ((FEW + 1, 1, 4), torch.float32, False),
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
