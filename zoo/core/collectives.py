"""Collectives of tensor and expert parallelism with gradients, compiled or not: sums, gathered columns, exchanged rows.

Every rank computes the same loss from the same logits. The gradient of a sum over ranks is therefore the gradient of
each summand. The gradient of a tensor that every rank reads is the sum of the ranks' gradients. These are the functions
g and f of Megatron-LM (Shoeybi et al. 2019, section 3).
"""

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
    out: Tensor = _Summed.apply(x, group.name)  # type: ignore[no-untyped-call]
    return out


def read_by_all(x: Tensor, group: Group) -> Tensor:
    """Returns x, which each rank then uses differently: its gradient is the sum of the ranks' gradients."""
    out: Tensor = _ReadByAll.apply(x, group.name)  # type: ignore[no-untyped-call]
    return out


def mean_over_ranks(x: Tensor, group: Group) -> Tensor:
    """Returns the mean of x over ranks, which each rank then uses differently: gradients are averaged, too."""
    return _all_reduce(x, group.name) / group.rank.ranks


def gathered_columns(x: Tensor, group: Group, counts: list[int]) -> Tensor:
    """Concatenates the x (..., columns) of all ranks to (..., all columns); rank i has counts[i] columns."""
    out: Tensor = _GatheredColumns.apply(x, group, counts)  # type: ignore[no-untyped-call]
    return out


def exchanged_rows(x: Tensor, group: Group, sent: list[int], received: list[int]) -> Tensor:
    """Sends rows of x (n, ...), the first sent[0] to rank 0 and so on; returns received[i] rows from each rank i."""
    out: Tensor = _ExchangedRows.apply(x, group.name, sent, received)  # type: ignore[no-untyped-call]
    return out


def exchanged_counts(counts: Tensor, group: Group) -> Tensor:
    """Sends counts[i] of `counts` (ranks,) to rank i; returns the number that each rank sent to this one (ranks,)."""
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


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        return _all_reduce(x, name)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _ReadByAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(grad, ctx.name), None


class _ExchangedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, sent: list[int], received: list[int]) -> Tensor:
        ctx.name, ctx.sent, ctx.received = name, sent, received
        return _all_to_all(x, name, sent, received)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(grad, ctx.name, ctx.received, ctx.sent), None, None, None


class _GatheredColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, counts: list[int]) -> Tensor:
        index, ranks = group.rank.index, group.rank.ranks
        ctx.columns = sum(counts[:index]), counts[index]
        widest = max(counts)
        padded = torch.nn.functional.pad(x, (0, widest - counts[index])).contiguous()
        parts = _all_gather(padded, group.name, ranks).chunk(ranks)
        return torch.cat([part[..., :count] for part, count in zip(parts, counts, strict=True)], dim=-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.narrow(-1, *ctx.columns), None, None
