"""The one way in which tests compare computed tensors: both sides in float64, at one bound.

A model of the zoo in float64 computes everything in float64; the reference does so inside `in_float64`. What differs by
more than rounding then differs by far more than the bound, on any processor. Values in narrower dtypes are compared by
`rms_error` with what the same computation gives in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weights.reference.float64 import BOUND, in_float64, largest_difference, rms_error

__all__ = ["BOUND", "assert_equal", "differs", "in_float64", "largest_difference", "rms_error"]

MUTANT = 100 * BOUND  # of the largest element: by so much at least a mistake has to move a result


def assert_equal(value: Tensor, expected: Tensor, what: object = "") -> None:
    """Two tensors of one shape, both in float64, are equal but for rounding."""
    assert value.dtype == expected.dtype == torch.float64, f"{what}: {value.dtype} and {expected.dtype}"
    off = largest_difference(value, expected)
    assert off <= BOUND, f"{what}: {off:.1e} of the largest element, bound {BOUND:.0e}"


def differs(value: Tensor, expected: Tensor) -> bool:
    """Whether two tensors differ by far more than rounding."""
    return largest_difference(value, expected) >= MUTANT
