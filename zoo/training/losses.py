"""Batches and their losses: the cross entropy of the next token, and the balance of expert loads, by a loss or by
router biases."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.routers import routers_of
from zoo.core.float32 import upcast
from zoo.core.forward_context import RouterOutput
from zoo.core.processes import rank, ranks, summed
from zoo.errors import UsageError
from zoo.model.decoder import Decoder
from zoo.training.distributed import own_part

IGNORED = -100  # target that is not scored


class Batch(NamedTuple):
    """The sequences of one step. `inputs` (b, t) int64 holds token ids. `targets` (b, t) int64 holds the next id for
    each of them, or IGNORED if it is not scored."""

    inputs: Tensor
    targets: Tensor

    def scored(self) -> Tensor:
        """Returns the number of scored targets, on the batch's device."""
        return (self.targets != IGNORED).sum()

    def split(self, count: int) -> list["Batch"]:
        """Divides the sequences into `count` micro-batches of nearly equal size, for gradient accumulation."""
        inputs, targets = self.inputs.tensor_split(count), self.targets.tensor_split(count)
        return [Batch(*both) for both in zip(inputs, targets, strict=True)]

    def own_rows(self) -> "Batch":
        """Returns the sequences for this rank from a batch that every rank holds. All ranks get the same number of
        sequences; unscored sequences fill up the batch."""
        if ranks() == 1:
            return self
        each = -(-len(self.inputs) // ranks())
        missing = each * ranks() - len(self.inputs)
        inputs = torch.cat([self.inputs, self.inputs[:1].expand(missing, -1)])
        targets = torch.cat([self.targets, torch.full_like(self.targets[:1], IGNORED).expand(missing, -1)])
        rows = slice(rank() * each, (rank() + 1) * each)
        return Batch(inputs[rows], targets[rows])


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cross entropy, in nats, of targets (b, t) under logits (b, t, vocab). IGNORED targets do not
    count. It is computed in float32 or wider, and is NaN if no target is scored. Targets are not shifted: the target of
    a position must be the id that its logits predict."""
    return F.cross_entropy(upcast(logits.flatten(0, -2)), targets.flatten(), ignore_index=IGNORED)


def load_balancing_loss(routing: Sequence[RouterOutput]) -> Tensor:
    """Returns the mean over layers of experts * sum_e f_e P_e (Switch Transformer, Fedus et al. 2021, section 2.2, eq.
    4 to 6, whose coefficient is 0.01). f_e is the share of a layer's choices that went to expert e. P_e is the mean
    probability of e, by a softmax over all experts.

    `routing` is the result of `recorded_routing` for one forward pass. So the loss balances the tokens of that pass,
    which are those of one rank and one accumulation step. The loss is 1 for a balanced layer, whatever k is, and at
    most the number of experts. Only P has gradients. Raises UsageError if nothing was recorded.
    """
    if not routing:
        raise UsageError("no routing was recorded: the model has no experts, or ran outside recorded_routing()")
    losses = []
    for output in routing:
        probabilities = output.logits.flatten(0, -2).softmax(-1).mean(0)
        losses.append(len(probabilities) * (output.counts() / output.chosen.numel() * probabilities).sum())
    return torch.stack(losses).mean()


@torch.no_grad()
def update_router_bias(model: nn.Module, routing: Sequence[RouterOutput], rate: float) -> None:
    """Adds rate * sign(mean load - load) to the correction bias of each router that has one.

    The load of an expert is the number of tokens that chose it. This is auxiliary-loss-free load balancing (Wang et al.
    2024, algorithm 1; DeepSeek-V3, section 2.1.2, with a rate of 0.001).

    Call it after an optimiser step, with the `recorded_routing` of that step: one output for each router of the model.
    Loads are summed over all ranks, so every rank must call it. The biases may be sharded. Raises UsageError if a
    router has no output.
    """
    routers = routers_of(model)
    if len(routers) != len(routing):
        raise UsageError(f"{len(routing)} router outputs for {len(routers)} routers: give one pass of this model")
    corrected = [pair for pair in zip(routers, routing, strict=True) if pair[0].spec.has_correction]
    if not corrected:
        return
    loads = [output.counts() for _, output in corrected]
    for (router, _), load in zip(corrected, summed(torch.cat(loads)).split(list(map(len, loads))), strict=True):
        step = rate * (load.double().mean() - load).sign()
        router.correction.add_(own_part(step.to(router.correction.dtype), router.correction))


def require_trainable_routers(spec: Decoder) -> None:
    """Raises UsageError if a router would get no gradient. This happens if one expert is chosen and its weight is
    divided by itself: the weight is then 1, whatever the router computes."""
    for index, layer in enumerate(spec.layers):
        moe = layer.mixture
        if moe and moe.experts > 1 and moe.router.k == 1 and moe.router.renormalises:
            raise UsageError(
                f"layer {index}: the {moe.router.describe()} has k=1 and renormalised weights, so it gets no "
                "gradient: take k >= 2, or SoftmaxTopK(k=1, renormalise=False)"
            )
