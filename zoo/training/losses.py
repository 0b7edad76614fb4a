"""Batches and their losses: the cross entropy of the next token, and the equal use of experts, by a loss or by the bias
of routers with a correction."""

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

IGNORED = -100  # the target of a position that is not scored


class Batch(NamedTuple):
    """The sequences of one step. `inputs` (b, t) int64 are token ids. `targets` (b, t) int64 are the ids to predict
    after each of them, IGNORED where nothing is scored."""

    inputs: Tensor
    targets: Tensor

    def scored(self) -> Tensor:
        """Returns the number of scored targets, on the batch's device."""
        return (self.targets != IGNORED).sum()

    def split(self, pieces: int) -> list["Batch"]:
        """Divides the sequences into `pieces` batches of nearly equal size, for gradient accumulation."""
        inputs, targets = self.inputs.tensor_split(pieces), self.targets.tensor_split(pieces)
        return [Batch(*both) for both in zip(inputs, targets, strict=True)]

    def own_rows(self) -> "Batch":
        """Returns the sequences that this rank computes, equally many in each rank; unscored ones fill up the rest.
        Every rank holds the whole batch."""
        if ranks() == 1:
            return self
        each = -(-len(self.inputs) // ranks())
        missing = each * ranks() - len(self.inputs)
        inputs = torch.cat([self.inputs, self.inputs[:1].expand(missing, -1)])
        targets = torch.cat([self.targets, torch.full_like(self.targets[:1], IGNORED).expand(missing, -1)])
        rows = slice(rank() * each, (rank() + 1) * each)
        return Batch(inputs[rows], targets[rows])


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean nats of the target ids (b, t) under logits (b, t, vocab), over the targets that are not IGNORED.

    It is computed in float32 at least, and NaN where no target is scored. Targets are those of the same positions: the
    caller shifts them.
    """
    return F.cross_entropy(upcast(logits.flatten(0, -2)), targets.flatten(), ignore_index=IGNORED)


def load_balancing_loss(routing: Sequence[RouterOutput]) -> Tensor:
    """Returns the mean over layers of experts * sum_e f_e P_e, where f_e is the share of a layer's choices that fell on
    expert e and P_e the mean probability that its softmax over all experts gives to e (Switch Transformer, Fedus et al.
    2021, section 2.2, eq. 4 to 6, whose coefficient is 0.01).

    `routing` is what `recorded_routing` collected from one forward pass: the loss balances the tokens of that pass, one
    rank's and one accumulation step's. It is 1 where a layer is balanced, for every k, and at most the number of
    experts. Only P has gradients. Raises UsageError where nothing was recorded.
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
    """Adds rate * sign(mean load - load) to the correction of each router that has one.

    The load of an expert is the number of tokens that it was chosen for. This is auxiliary-loss-free load balancing
    (Wang et al. 2024, algorithm 1; DeepSeek-V3, section 2.1.2, with a rate of 0.001).

    Call it after an optimiser step, with the step's `recorded_routing`: one output for each router of the model. Loads
    are those of all ranks, which must all call it; corrections may be sharded. Raises UsageError where a router has no
    output.
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
    """Raises UsageError where a router would get no gradient: a single chosen expert whose weight is divided by itself
    has the weight 1 whatever the router computes."""
    for index, layer in enumerate(spec.layers):
        moe = layer.mixture
        if moe and moe.experts > 1 and moe.router.k == 1 and moe.router.renormalises:
            raise UsageError(
                f"layer {index}: the {moe.router.describe()} has k=1 and renormalised weights, so it gets no "
                "gradient: take k >= 2, or SoftmaxTopK(k=1, renormalise=False)"
            )
