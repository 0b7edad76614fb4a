"""Mixtures of experts: each token's weighted sum of the outputs of a few experts (Shazeer et al. 2017, equation 1).

`mixture` computes experts with stacked matrices, in one of four ways:

- compiled single-token decode reads the chosen matrices in place;
- with gradients on a CPU, gated linear units run a few experts at a time (zoo.core.ops.routed_glu);
- compiled code, GPUs and other passes with gradients sort tokens by expert and run each linear layer as one operator;
- eager inference on a CPU runs one expert after the other, so that activations stay in the processor's caches.

`separate_mixture` takes one function per expert. Sizes: b sequences, t tokens, k experts per token.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from zoo.core.ops.linear import autocast, dot, is_single_token, is_transformed, linear, materialize, use_gemv
from zoo.core.ops.routed_glu import Join, allows_routed_glu, routed_glu

ROW_BYTES = 16  # torch's grouped product takes rows whose length is a multiple of this

Expert = Callable[[Tensor], Tensor]  # (n, dim) -> (n, dim)
Linears = Mapping[str, tuple[Tensor, Tensor | None]]  # weight (experts, out, in) and bias (experts, out) by name
Apply = Callable[[str, Tensor], Tensor]  # a linear layer by its name: (..., in) -> (..., out)
Combine = Callable[[Apply, Tensor], Tensor]  # computes an expert from its linear layers: (..., dim) -> (..., dim)


def plain(x: Tensor, weights: Tensor, chosen: Tensor, experts: Sequence[Expert], scales_input: bool = False) -> Tensor:
    """x (..., dim), weights and expert ids (..., k) -> y (..., dim).

    y = sum over j of weights[j] * experts[chosen[j]](x), or of experts[chosen[j]](weights[j] * x) if `scales_input`.
    """
    out = torch.zeros_like(x)
    for e, expert in enumerate(experts):
        for j in range(chosen.shape[-1]):
            is_chosen, weight = (chosen[..., j] == e).unsqueeze(-1), weights[..., j, None]
            out = out + torch.where(is_chosen, expert(weight * x) if scales_input else weight * expert(x), 0)
    return out


def separate_mixture(
    x: Tensor, weights: Tensor, chosen: Tensor, experts: Sequence[Expert], scales_input: bool = False
) -> Tensor:
    """Computes `plain`, but runs each expert once, on the tokens that chose it. Compiled code does not know the number
    of these tokens and runs each expert on all tokens."""
    tokens, ids, factors = x.flatten(0, -2), chosen.flatten(0, -2), weights.flatten(0, -2)

    def output(expert: Expert, x: Tensor, factor: Tensor) -> Tensor:
        return expert(x * factor) if scales_input else expert(x) * factor

    out = torch.zeros_like(tokens)
    for e, expert in enumerate(experts):
        factor = torch.where(ids == e, factors, 0).sum(-1, keepdim=True)  # (n, 1), 0 for tokens that did not choose it
        visits = (ids == e).any(-1, keepdim=True)
        if torch.compiler.is_compiling():
            out = out + torch.where(visits, output(expert, tokens, factor), 0)
        else:
            rows = visits.squeeze(-1).nonzero().squeeze(-1)
            if len(rows):
                out = out.index_add(0, rows, output(expert, tokens[rows], factor[rows]))
    return out.view_as(x)


def mixture(
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    linears: Linears,
    combine: Combine,
    join: Join | None = None,
    scales_input: bool = False,
) -> Tensor:
    """Computes `plain` for x (b, t, dim) and experts with stacked linear layers; `join` is given for gated linear
    units, down(join(gate(x), up(x)))."""
    if join is not None and not scales_input:
        matrices, biases = zip(*(linears[name] for name in ("gate", "up", "down")), strict=True)
        if allows_routed_glu(x, weights, *matrices, *biases):
            return routed_glu(join, x, weights, chosen, *matrices, *biases)
    if scales_input:
        return expert_outputs(x, chosen, linears, combine, weights).sum(-2)
    return (expert_outputs(x, chosen, linears, combine) * weights[..., None]).sum(-2)


def expert_outputs(
    x: Tensor, chosen: Tensor, linears: Linears, combine: Combine, factors: Tensor | None = None
) -> Tensor:
    """x (b, t, dim), expert ids (b, t, k) -> the output of each chosen expert (b, t, k, dim). `factors` (b, t, k), if
    given, scale the input of each chosen expert."""

    def experts(x: Tensor, product: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Tensor:
        return combine(lambda name, x: product(x, *linears[name]), x)

    first = next(iter(linears.values()))[0]
    if use_gemv(x, first) or (x.device.type == "cuda" and is_single_token(x)):
        rows = x.unsqueeze(-2)
        scaled = rows if factors is None else rows * factors[..., None]
        return experts(scaled, lambda x, weight, bias: gathered_linear(x, chosen, weight, bias))
    # Tokens are sorted by expert: each expert reads its matrices once and multiplies one contiguous block.
    ids = chosen.flatten()
    order = ids.argsort(stable=True)
    counts = torch.zeros(len(first), dtype=torch.long, device=ids.device)
    counts.scatter_add_(0, ids, torch.ones_like(ids))
    tokens = x.flatten(0, -2)[order // chosen.shape[-1]]
    if factors is not None:
        tokens = tokens * factors.flatten()[order][:, None]
    if torch.compiler.is_compiling() or x.device.type == "cuda" or torch.is_grad_enabled():
        done = experts(tokens, lambda x, weight, bias: grouped_linear(x, counts, weight, bias))
    else:  # one expert after the other: its intermediate activations stay in the processor's caches
        blocks = enumerate(tokens.split(counts.tolist()))
        done = torch.cat([experts(block, partial(expert_linear, e)) for e, block in blocks if len(block)])
    return torch.empty_like(done).index_copy_(0, order, done).view(*chosen.shape, -1)


def gathered_linear(x: Tensor, ids: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., k or 1, in), expert ids (..., k), weight (experts, out, in), bias (experts, out) -> (..., k, out).

    It is meant for compiled code, which reads the weights in place. In eager code, indexing would copy the weights.
    """
    y = dot(weight[ids], materialize(x)).to(x.dtype)
    return y if bias is None else y + bias[ids]


def grouped_linear(x: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (n, in) sorted by expert, rows per expert (experts,), weight (experts, out, in), bias (experts, out) -> (n,
    out)."""
    x, weight, bias = autocast(x), autocast(weight), None if bias is None else autocast(bias)
    if x.device.type == "cuda" and allows_grouped_mm(x, weight):
        return grouped_mm(x, counts, weight, bias)
    # The loop over experts is one opaque operator in compiled code, which does not know the counts. It is one with
    # gradients, too: for each expert's gradient, autograd would allocate a tensor of the size of all experts.
    opaque = torch.compiler.is_compiling() or (torch.is_grad_enabled() and not is_transformed())
    return (_operator if opaque else _grouped)(x, counts, weight, bias)


def allows_grouped_mm(x: Tensor, weight: Tensor) -> bool:
    """Whether `grouped_mm` takes x (n, in) and weight (experts, out, in): both must be bfloat16, and the rows of inputs
    and of outputs a multiple of 16 bytes long."""
    return x.dtype == weight.dtype == torch.bfloat16 and all(
        width * x.dtype.itemsize % ROW_BYTES == 0 for width in weight.shape[1:]
    )


def grouped_mm(x: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes `grouped_linear` in one kernel, for bfloat16 only. The CPU does not wait for the counts."""
    ends = counts.cumsum(0)
    y = F.grouped_mm(x, weight.transpose(1, 2), offs=ends.to(torch.int32))
    return y if bias is None else y + bias[torch.bucketize(torch.arange(len(x), device=x.device), ends, right=True)]


def expert_linear(e: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (n, in) through expert `e` -> (n, out)."""
    return linear(x, weight[e], None if bias is None else bias[e])


def _grouped(x: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    blocks = enumerate(x.split(counts.tolist()))
    return torch.cat([expert_linear(e, block, weight, bias) for e, block in blocks if len(block)])


_operator = custom_op("zoo::grouped_linear", _grouped, mutates_args=())
_operator.register_fake(lambda x, counts, weight, bias: x.new_empty(x.shape[0], weight.shape[1]))


@custom_op("zoo::grouped_linear_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, counts: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """grad (n, out) -> gradients of x (n, in), weight (experts, out, in) and bias (experts, out)."""
    grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[:2])
    ends = counts.cumsum(0).tolist()
    for e, (start, end) in enumerate(itertools.pairwise([0, *ends])):
        # For an expert without tokens, these calls write zeros.
        torch.mm(grad[start:end], weight[e], out=grad_x[start:end])
        torch.mm(grad[start:end].T, x[start:end], out=grad_weight[e])
        torch.sum(grad[start:end], dim=0, out=grad_bias[e])
    return grad_x, grad_weight, grad_bias


_backward.register_fake(
    lambda grad, x, counts, weight: (torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[:2]))
)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, counts, weight, bias = inputs
    ctx.save_for_backward(x, counts, weight)
    ctx.has_bias = bias is not None


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, counts, weight = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = _backward(grad.contiguous(), x, counts, weight)
    return grad_x, None, grad_weight, grad_bias if ctx.has_bias else None


_operator.register_autograd(_differentiate, setup_context=_save_for_backward)
