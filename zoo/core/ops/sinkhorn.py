"""Sinkhorn normalisation: matrices whose rows and columns sum to one (Xie et al. 2026, mHC, section 4.2).

In compiled code it is one operator. Otherwise the compiler would unroll twenty iterations of sums over short rows,
which takes ten seconds for each place that mixes streams.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op


def plain(scores: Tensor, eps: float, iterations: int) -> Tensor:
    """Computes `doubly_stochastic` step by step. The operator calls this function too."""
    matrix = scores.softmax(-1) + eps
    for axis in _axes(iterations):
        matrix = matrix / (matrix.sum(axis, keepdim=True) + eps)
    return matrix


def doubly_stochastic(scores: Tensor, eps: float, iterations: int) -> Tensor:
    """Returns matrices (..., n, n) whose rows and columns sum to nearly 1, for scores (..., n, n).

    It divides the rows and columns of exp(scores) by their sums `iterations` times, columns last. `eps` is added to the
    elements after the first division of rows, and to every later sum.
    """
    compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return (_operator if compiled else plain)(scores, eps, iterations)


def _axes(iterations: int) -> Iterator[int]:
    """Yields the axis of each sum after the softmax. The softmax itself is the first division of rows."""
    yield -2
    for _ in range(iterations - 1):
        yield from (-1, -2)


_operator = custom_op("zoo::doubly_stochastic", plain, mutates_args=())
_operator.register_fake(lambda scores, eps, iterations: torch.empty_like(scores))


@custom_op("zoo::doubly_stochastic_backward", mutates_args=())
def _backward(grad: Tensor, scores: Tensor, eps: float, iterations: int) -> Tensor:
    """Returns the gradient of `scores`. It recomputes each iteration, which is faster than storing the results."""
    shares = scores.softmax(-1)
    matrix, steps = shares + eps, []
    for axis in _axes(iterations):
        total = matrix.sum(axis, keepdim=True) + eps
        matrix = matrix / total
        steps.append((axis, total, matrix))
    for axis, total, matrix in reversed(steps):
        grad = (grad - (grad * matrix).sum(axis, keepdim=True)) / total
    return shares * (grad - (grad * shares).sum(-1, keepdim=True))


_backward.register_fake(lambda grad, scores, eps, iterations: torch.empty_like(scores))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    scores, *ctx.rest = inputs
    ctx.save_for_backward(scores)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _backward(grad, *ctx.saved_tensors, *ctx.rest), None, None


_operator.register_autograd(_differentiate, setup_context=_save_for_backward)
