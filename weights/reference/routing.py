"""Which experts the routers of two models chose, and whether rounding alone can have decided a choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks import GroupedSigmoidTopK, SoftmaxTopK
from zoo.blocks.routers import Router

Choices = dict[nn.Module, list[Tensor]]  # router -> (n, k) expert ids of each pass, in ascending order


def routers(module: nn.Module) -> list[nn.Module]:
    """The zoo's routers in a module, in order of layers."""
    return [part for part in module.modules() if isinstance(getattr(part, "spec", None), Router)]


@contextmanager
def choices(module: nn.Module) -> Iterator[Choices]:
    """What each of the zoo's routers in a module chooses meanwhile."""
    made: Choices = {router: [] for router in routers(module)}

    def record(router: nn.Module, args: tuple[Tensor, ...], out: tuple[Tensor, Tensor]) -> None:
        made[router].append(out[1].flatten(0, -2).sort(-1).values)

    hooks = [router.register_forward_hook(record) for router in made]
    try:
        yield made
    finally:
        for hook in hooks:
            hook.remove()


def gathered(made: Choices, batch: int) -> list[Tensor]:
    """The choices of each router over all its passes: (batch, t, k)."""
    return [torch.cat([each.unflatten(0, (batch, -1)) for each in passes], dim=1) for passes in made.values()]


def agreement(one: Sequence[Tensor], other: Sequence[Tensor], shape: tuple[int, int]) -> tuple[Tensor, int]:
    """Two runs' choices, layer by layer -> (batch, t), where they agree so far, and how many differ there.

    A token with another expert changes what it and every later token of its row hold in the layers above: of those,
    equality cannot be asked.
    """
    agree, differing = torch.ones(shape, dtype=torch.bool), 0
    for ours, theirs in zip(one, other, strict=True):
        differ = (ours != theirs).any(-1) & agree
        differing += int(differ.sum())
        agree &= ~differ.cummax(-1).values
    return agree, differing


def margin(router: nn.Module, x: Tensor) -> Tensor:
    """(n, dim) -> (n,) how far the last that is chosen is ahead of the first that is not, of experts or of groups of
    them, as a part of the largest score. Infinite for a router of an unknown kind: no choice of its counts as a tie."""
    spec: Any = router.spec
    weight, beside = router.get_parameter("weight"), dict(router.named_parameters())
    if isinstance(spec, SoftmaxTopK):
        scores = F.linear(x, weight, beside.get("bias")).float()
        return _lead(scores, spec.k) / scores.abs().amax(-1)
    if isinstance(spec, GroupedSigmoidTopK):
        scores = F.linear(x.float(), weight.float()).sigmoid() + beside["correction"]
        grouped = scores.unflatten(-1, (spec.groups, -1))
        best = grouped.topk(2).values.sum(-1)
        kept = grouped.masked_fill((best < best.topk(spec.keep).values[:, -1:])[..., None], float("-inf"))
        lead = torch.minimum(_lead(kept.flatten(-2), spec.k), _lead(best, spec.keep))
        return lead / scores.abs().amax(-1)
    return torch.full_like(x[:, 0], float("inf"))


def _lead(scores: Tensor, k: int) -> Tensor:
    """(n, choices) -> (n,) the k-th largest less the next, infinite where there is no next."""
    if k == scores.shape[-1]:
        return torch.full_like(scores[:, 0], float("inf"))
    top = scores.topk(k + 1).values
    return top[:, k - 1] - top[:, k]
