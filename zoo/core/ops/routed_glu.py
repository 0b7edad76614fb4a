"""A layer's routed experts with gradients: gated linear units, computed for a few experts at a time.

A block of tokens is gathered, multiplied, weighted and added to the output, so that all intermediate tensors stay in
the processor's caches. Only the products of the inputs with gate and up are stored for the backward pass. The gradient
of a token's weight is the product of the hidden activations and their unweighted gradient, so that no expert output
needs to be stored (as in ScatterMoE, Tan et al. 2024, section 3.2).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.core.ops.linear import is_plain_memory, is_transformed

Join = Callable[[Tensor, Tensor], Tensor]  # gate and up (n, hidden) -> (n, hidden)


BLOCK_BYTES = 2**20  # bytes of a block's inputs: with all intermediate tensors they fit in a processor's cache
NAMES = "x", "weights", "chosen", "gate", "up", "down", "gate_bias", "up_bias", "down_bias"


def allows_routed_glu(x: Tensor, *others: Tensor | None) -> bool:
    """Whether `routed_glu` may run: in eager code with gradients, on plain CPU memory in float32 or float64."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.dtype.itemsize >= torch.float32.itemsize
        and all(is_plain_memory(x, other) for other in others if other is not None)
        and not torch.is_autocast_enabled("cpu")
        and not is_transformed()
    )


def routed_glu(join: Join, x: Tensor, weights: Tensor, chosen: Tensor, *parameters: Tensor | None) -> Tensor:
    """x (..., dim), weights (..., k), expert ids (..., k); each expert's gate and up (experts, hidden, dim), down
    (experts, dim, hidden) and their biases or None -> the weighted sum of each token's experts (..., dim).

    Gradients are computed only for parameters that need them, and cannot be differentiated again.
    """
    flat = (each.flatten(0, -2) for each in (x, weights, chosen))
    out: Tensor = _RoutedGLU.apply(join, *flat, *parameters)  # type: ignore[no-untyped-call]
    return out.view_as(x)


class _RoutedGLU(torch.autograd.Function):
    """Computes `routed_glu` for x (n, dim)."""

    @staticmethod
    def forward(
        ctx: Any,
        join: Join,
        x: Tensor,
        weights: Tensor,
        chosen: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        gate_bias: Tensor | None,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
    ) -> Tensor:
        ids = chosen.flatten()
        order, counts = ids.argsort(stable=True), ids.bincount(minlength=len(gate)).tolist()
        tokens, scales = order // chosen.shape[1], weights.flatten()[order, None]
        blocks = _blocks(counts, BLOCK_BYTES // (x.shape[1] * x.itemsize))
        gates, ups = (x.new_empty(len(order), gate.shape[1]) for _ in range(2))
        out = torch.zeros_like(x, memory_format=torch.contiguous_format)
        for rows, experts, sizes in blocks:
            block = x.index_select(0, tokens[rows])
            _products(block, gate[experts], gate_bias, experts, sizes, gates[rows])
            _products(block, up[experts], up_bias, experts, sizes, ups[rows])
            _products(join(gates[rows], ups[rows]), down[experts], down_bias, experts, sizes, block)
            out.index_add_(0, tokens[rows], block.mul_(scales[rows]))
        ctx.join, ctx.blocks = join, blocks
        ctx.save_for_backward(x, weights, order, gates, ups, gate, up, down, down_bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, order, gates, ups, gate, up, down, down_bias = ctx.saved_tensors
        tokens, scales = order // weights.shape[1], weights.flatten()[order, None]
        like = (x, weights, None, gate, up, down, gate[..., 0], up[..., 0], down[..., 0])
        grads = {
            name: torch.zeros_like(given, memory_format=torch.contiguous_format)
            for name, given, needed in zip(NAMES, like, ctx.needs_input_grad[1:], strict=True)
            if needed
        }
        for rows, experts, sizes in ctx.blocks:
            block, above = x.index_select(0, tokens[rows]), grad.index_select(0, tokens[rows])
            with torch.enable_grad():
                pair = gates[rows].detach().requires_grad_(), ups[rows].detach().requires_grad_()
                joined = ctx.join(*pair)
            hidden = joined.detach()
            grad_hidden = torch.empty_like(hidden)
            _each(_product, above.split(sizes), down[experts], grad_hidden.split(sizes))
            if "weights" in grads:
                products = torch.linalg.vecdot(hidden, grad_hidden)
                if down_bias is not None:
                    _each(Tensor.addmv_, products.split(sizes), above.split(sizes), down_bias[experts])
                grads["weights"].view(-1)[order[rows]] = products
            above, grad_hidden = above.mul_(scales[rows]), grad_hidden.mul_(scales[rows])
            parts = [part.split(sizes) for part in (*torch.autograd.grad(joined, pair, grad_hidden), above)]
            for name, part, given in zip(("gate", "up", "down"), parts, (block, block, hidden), strict=True):
                if name in grads:
                    _each(_transposed_product, part, given.split(sizes), grads[name][experts])
                if f"{name}_bias" in grads:
                    _each(_sum, part, grads[f"{name}_bias"][experts])
            if "x" in grads:
                _each(_product, parts[0], gate[experts], block.split(sizes))
                _each(Tensor.addmm_, block.split(sizes), parts[1], up[experts])
                grads["x"].index_add_(0, tokens[rows], block)
        return None, *(grads.get(name) for name in NAMES)


def _blocks(counts: list[int], size: int) -> list[tuple[slice, slice, list[int]]]:
    """Returns (rows, experts, number of rows of each expert) for each block of the sorted rows. A block consists of
    whole experts. It has at most `size` rows unless it is a single expert."""
    blocks, first, start, end = [], 0, 0, 0
    for e, count in enumerate([*counts, size + 1]):
        if e > first and end + count > start + size:
            blocks.append((slice(start, end), slice(first, e), counts[first:e]))
            first, start = e, end
        end += count
    return blocks


def _products(x: Tensor, matrices: Tensor, bias: Tensor | None, experts: slice, sizes: list[int], into: Tensor) -> None:
    """Writes the products of each expert's rows of x and the expert's matrix (out, in) to the same rows of `into`."""
    operands = x.split(sizes), matrices.transpose(1, 2), into.split(sizes)
    if bias is None:
        _each(_product, *operands)
    else:
        _each(_product_with_bias, bias[experts], *operands)


def _each(function: Callable[..., object], *operands: Iterable[Tensor]) -> None:
    """Calls the function once for each expert, with that expert's operands."""
    for given in zip(*operands, strict=True):
        function(*given)


def _product(x: Tensor, matrix: Tensor, out: Tensor) -> None:
    torch.mm(x, matrix, out=out)


def _product_with_bias(bias: Tensor, x: Tensor, matrix: Tensor, out: Tensor) -> None:
    torch.addmm(bias, x, matrix, out=out)


def _transposed_product(x: Tensor, other: Tensor, out: Tensor) -> None:
    torch.mm(x.T, other, out=out)


def _sum(x: Tensor, out: Tensor) -> None:
    torch.sum(x, dim=0, out=out)
