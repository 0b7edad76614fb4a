"""Collective operations, with gradients, of tensor and expert parallelism: sums, gathered columns, exchanged rows.

Every rank computes the same loss from the same logits. The gradient of a sum over ranks is therefore the gradient of
each summand. The gradient of a tensor that every rank reads is the sum of the ranks' gradients. These are the functions
g and f of Megatron-LM (Shoeybi et al. 2019, section 3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from zoo.sharding import Rank


@dataclass(frozen=True)
class Group:
    """The ranks that divide a model, as torch's process group of this `name`, and the `rank` of this process."""

    name: str
    rank: Rank

    @classmethod
    def of(cls, group: dist.ProcessGroup) -> "Group":
        """Returns the Group for torch's process group."""
        from torch.distributed import _functional_collectives  # noqa: F401  (defines the operators; takes a second)

        return cls(group.group_name, Rank(dist.get_rank(group), dist.get_world_size(group)))


def summed(x: Tensor, group: Group) -> Tensor:
    """Returns the sum of x over ranks, in every rank."""
    return _with_gradient(x, lambda x: _all_reduce(x, group.name), lambda grad: grad)


def read_by_all(x: Tensor, group: Group) -> Tensor:
    """Returns x as the input of a divided block. The gradient of x is the sum of the gradients in all ranks."""
    return _with_gradient(x, lambda x: x.view_as(x), lambda grad: _all_reduce(grad, group.name))


def mean_over_ranks(x: Tensor, group: Group) -> Tensor:
    """Returns the mean of x over ranks, for use in a divided block. The gradients are averaged over ranks, too."""
    return _all_reduce(x, group.name) / group.rank.ranks


def gathered_columns(x: Tensor, group: Group, counts: list[int]) -> Tensor:
    """Concatenates the x (..., columns) of all ranks to (..., all columns); rank i has counts[i] columns."""
    index, ranks = group.rank.index, group.rank.ranks
    start, own = sum(counts[:index]), counts[index]

    def gather(x: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(x, (0, max(counts) - own)).contiguous()
        parts = _all_gather(padded, group.name, ranks).chunk(ranks)
        return torch.cat([part[..., :count] for part, count in zip(parts, counts, strict=True)], dim=-1)

    return _with_gradient(x, gather, lambda grad: grad.narrow(-1, start, own))


def exchanged_rows(x: Tensor, group: Group, sent: list[int], received: list[int]) -> Tensor:
    """Sends rows of x (n, ...): the first sent[0] to rank 0, and so on. Returns received[i] rows from each rank i."""
    return _with_gradient(
        x,
        lambda x: _all_to_all(x, group.name, sent, received),
        lambda grad: _all_to_all(grad, group.name, received, sent),
    )


def exchanged_counts(counts: Tensor, group: Group) -> Tensor:
    """Sends counts[i] of `counts` (ranks,) to rank i. Returns the number received from each rank (ranks,)."""
    ones = [1] * group.rank.ranks
    return _all_to_all(counts, group.name, ones, ones)


def _all_to_all(x: Tensor, name: str, sent: list[int], received: list[int]) -> Tensor:
    out: Tensor = torch.ops._c10d_functional.all_to_all_single(x.contiguous(), received, sent, name)
    return torch.ops._c10d_functional.wait_tensor(out)


def _all_gather(x: Tensor, name: str, ranks: int) -> Tensor:
    out: Tensor = torch.ops._c10d_functional.all_gather_into_tensor(x, ranks, name)
    return torch.ops._c10d_functional.wait_tensor(out)


def _all_reduce(x: Tensor, name: str) -> Tensor:
    out: Tensor = torch.ops._c10d_functional.all_reduce(x.contiguous(), "sum", name)
    return torch.ops._c10d_functional.wait_tensor(out)


def _with_gradient(x: Tensor, forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns forward(x). In the backward pass, `backward` maps the gradient of this output to the gradient of x."""
    out: Tensor = _LinearMap.apply(x, forward, backward)  # type: ignore[no-untyped-call]
    return out


class _LinearMap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.map = backward
        return forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.map(grad), None, None
