"""The losses of training: the cross entropy of the next token, and one that keeps experts equally used."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.core.float32 import upcast
from zoo.core.forward_context import RouterOutput
from zoo.errors import UsageError

IGNORED = -100  # the target of a position that is not scored


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
    return torch.stack([_switch_loss(output) for output in routing]).mean()


def _switch_loss(output: RouterOutput) -> Tensor:
    probabilities = output.logits.flatten(0, -2).softmax(-1).mean(0)
    return len(probabilities) * (output.counts() / output.chosen.numel() * probabilities).sum()
