"""The one bound within which two computations in float64 count as equal, and the difference that it bounds.

Models in float32 differ by rounding, and the amount depends on the processor, the library and the order of sums. In
float64, two equal models differ by 1e-14 of the largest element, while a mistake makes as large a difference as in
float32. Rounding can therefore neither hide a mistake nor look like one.
"""

from torch import Tensor

BOUND = 1e-10  # relative to the largest element


def largest_difference(value: Tensor, expected: Tensor) -> float:
    """Returns the largest absolute difference of two tensors, relative to the largest element of `expected`.

    The difference is absolute if `expected` is zero everywhere. It is NaN if any element is NaN, and infinite if an
    element is infinite in only one tensor. Raises ValueError for different shapes.
    """
    if value.shape != expected.shape:
        raise ValueError(f"shapes {tuple(value.shape)} and {tuple(expected.shape)} differ")
    if not expected.numel():
        return 0.0
    value, expected = value.detach().double(), expected.detach().double()
    difference = (value - expected).masked_fill(value == expected, 0.0)  # equal infinities
    largest = expected.masked_fill(expected.isinf(), 0.0).abs().amax()
    return float(difference.abs().amax() / (largest if largest > 0 else 1.0))
