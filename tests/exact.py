"""The comparison of computed tensors that all tests use: both sides in float64, at one bound.

A model of the zoo in float64 computes everything in float64; the reference does so inside `in_float64`. A difference
that is not rounding is then far above the bound, on any processor. Values in narrower dtypes are compared by
`rms_error` with what the same computation gives in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weights.reference.float64 import in_float64
from zoo.core.float32 import BOUND, largest_difference

__all__ = [
    "BOUND",
    "assert_as_near",
    "assert_computes",
    "assert_equal",
    "differing_gradients",
    "differs",
    "in_float64",
    "largest_difference",
    "rms_error",
]

MUTANT = 100 * BOUND  # of the largest element: the least amount by which a mistake must move a result


def assert_equal(value: Tensor, expected: Tensor, what: object = "") -> None:
    """Asserts that two tensors of one shape, both in float64, are equal up to rounding."""
    assert value.dtype == expected.dtype == torch.float64, f"{what}: {value.dtype} and {expected.dtype}"
    off = largest_difference(value, expected)
    assert off <= BOUND, f"{what}: {off:.1e} of the largest element, bound {BOUND:.0e}"


def assert_as_near(
    values: Sequence[Tensor], yardsticks: Sequence[Tensor], exact: Sequence[Tensor], what: object = ""
) -> None:
    """Asserts that values in a narrow dtype are as near to the exact values in float64 as a yardstick in the same
    dtype: their root mean square error, pooled over at least three seeds, is at most twice as large. The yardstick's
    counts as at least one unit of the dtype's rounding."""
    assert len(values) >= 3, "one seed may be lucky"
    dtype = values[0].dtype
    assert all(each.dtype == dtype != torch.float64 for each in (*values, *yardsticks)), f"{what}: {dtype}"
    off, own = pooled_error(values, exact), max(pooled_error(yardsticks, exact), torch.finfo(dtype).eps)
    assert off <= 2 * own, f"{what}: an error of {off:.1e} in {dtype}, the yardstick's is {own:.1e}"


def assert_computes(
    call: Callable[..., Any],
    plain: Callable[..., Any],
    inputs: Callable[[], Sequence[Any]],
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32, torch.bfloat16),
    what: object = "",
) -> None:
    """Asserts that `call` computes the same as the `plain` form for three draws of `inputs`: equal in float64, and as
    near to float64 in narrower dtypes. Both return a tensor, or a tuple of them."""

    def results(function: Callable[..., Any], given: Sequence[Any]) -> tuple[Tensor, ...]:
        out = function(*given)
        return (out,) if isinstance(out, Tensor) else tuple(out)

    draws = [inputs() for _ in range(3)]
    for dtype in dtypes:
        given = [[_cast(each, dtype) for each in draw] for draw in draws]
        exact = [results(plain, [_cast(each, torch.float64) for each in draw]) for draw in given]
        found = [results(call, draw) for draw in given]
        if dtype == torch.float64:
            for parts, wanted in zip(found, exact, strict=True):
                for part, other in zip(parts, wanted, strict=True):
                    assert_equal(part, other, what)
            continue
        narrow = [results(plain, draw) for draw in given]
        for parts in zip(zip(*found, strict=True), zip(*narrow, strict=True), zip(*exact, strict=True), strict=True):
            assert_as_near(*parts, what)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def rms_error(value: Tensor, exact: Tensor) -> float:
    """The root mean square of a tensor's error, relative to that of the `exact` values in float64."""
    difference = value.detach().double() - exact
    return float(difference.square().mean().sqrt() / exact.square().mean().sqrt())


def pooled_error(values: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The root mean square of the relative errors of several tensors."""
    pairs = [(value, each.detach()) for value, each in zip(values, exact, strict=True)]
    assert all(value.shape == each.shape for value, each in pairs)
    return float(sum(rms_error(*pair) ** 2 for pair in pairs if pair[1].numel()) / len(pairs)) ** 0.5


def differing_gradients(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """The parameters whose gradients differ by more than rounding, and by how much. A gradient below the bound of the
    largest one of all is zero but for rounding, on both sides: a key's bias that is not rotated moves all scores of a
    query alike."""
    assert found.keys() == expected.keys()
    zero = BOUND * max(float(gradient.abs().max()) for gradient in expected.values())
    errors = {
        name: largest_difference(found[name], gradient)
        for name, gradient in expected.items()
        if max(float(found[name].abs().max()), float(gradient.abs().max())) > zero
    }
    return {name: error for name, error in errors.items() if not error <= BOUND}


def differs(value: Tensor, expected: Tensor) -> bool:
    """Whether two tensors differ by far more than rounding."""
    return largest_difference(value, expected) >= MUTANT
