"""The one bound at which two computations in float64 count as equal, and the difference that it bounds.

Models in float32 differ by rounding, and how much depends on the processor, the library and the order of sums. In
float64 two models that compute the same differ by 1e-14 of the largest element, and two that do not differ by as much
as before: a mistake cannot hide, and rounding cannot feign one.
"""

from torch import Tensor

BOUND = 1e-10  # of the largest element


def largest_difference(value: Tensor, expected: Tensor) -> float:
    """The largest absolute difference of two tensors of one shape, relative to the largest element of `expected`; the
    difference itself where `expected` is zero everywhere. NaN where an element of either is NaN, infinite where an
    element of one alone is infinite. Raises ValueError for other shapes."""
    if value.shape != expected.shape:
        raise ValueError(f"shapes {tuple(value.shape)} and {tuple(expected.shape)} differ")
    if not expected.numel():
        return 0.0
    value, expected = value.detach().double(), expected.detach().double()
    difference = (value - expected).masked_fill(value == expected, 0.0)  # equal infinities
    largest = expected.masked_fill(expected.isinf(), 0.0).abs().amax()
    return float(difference.abs().amax() / (largest if largest > 0 else 1.0))
