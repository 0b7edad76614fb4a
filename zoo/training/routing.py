"""Keeping experts equally used without a loss, by the bias update of routers with a correction; and the refusal of
routers that cannot learn."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zoo.blocks.routers import routers_of
from zoo.core.forward_context import RouterOutput
from zoo.errors import UsageError
from zoo.model.decoder import Decoder


@torch.no_grad()
def update_router_bias(model: nn.Module, routing: Sequence[RouterOutput], rate: float) -> None:
    """Adds rate * sign(mean load - load) to the correction of each router that has one.

    The load of an expert is the number of tokens that it was chosen for. This is auxiliary-loss-free load balancing
    (Wang et al. 2024, algorithm 1; DeepSeek-V3, section 2.1.2, with a rate of 0.001).

    Call it after an optimiser step, with the step's `recorded_routing`: one output for each router of the model,
    including those without a correction. Where torch.distributed is initialised the loads are those of all ranks, and
    all ranks must call it; corrections may be sharded. Raises UsageError where a router has no output.
    """
    routers = routers_of(model)
    if len(routers) != len(routing):
        raise UsageError(f"{len(routing)} router outputs for {len(routers)} routers: give one pass of this model")
    pairs = zip(routers, routing, strict=True)
    corrected = [(router, output) for router, output in pairs if router.spec.has_correction]
    if not corrected:
        return
    loads = [output.counts() for _, output in corrected]
    for (router, _), load in zip(corrected, _summed_over_ranks(loads), strict=True):
        _add(router.correction, rate * (load.double().mean() - load).sign())


def _summed_over_ranks(loads: list[Tensor]) -> Sequence[Tensor]:
    if not (dist.is_available() and dist.is_initialized()):
        return loads
    joined = torch.cat(loads)  # one message for all layers
    dist.all_reduce(joined)
    return joined.split([len(load) for load in loads])


def _add(correction: Any, step: Tensor) -> None:
    """Adds a whole `step` to a correction, of which this rank may hold only a part."""
    step = step.to(correction)
    if hasattr(correction, "placements"):
        from torch.distributed.tensor import distribute_tensor

        step = distribute_tensor(step, correction.device_mesh, correction.placements, src_data_rank=None)
    correction.add_(step)


def require_trainable_routers(spec: Decoder) -> None:
    """Raises UsageError where a router would get no gradient: a single chosen expert whose weight is divided by itself
    has the weight 1 whatever the router computes."""
    for index, layer in enumerate(spec.layers):
        moe = layer.mixture
        if moe and moe.experts > 1 and moe.router.k == 1 and moe.router.renormalises:
            raise UsageError(
                f"layer {index}: the {moe.router.describe()} has k=1 and renormalised weights, so it gets no "
                "gradient: take k >= 2, or SoftmaxTopK(k=1, renormalise=False)"
            )
