"""What training minimises: the cross entropy of the next token, and losses that keep experts equally used.

A balancing loss takes what `zoo.core.forward_context.recorded_routing` collects from one forward pass. It is 1 where
all experts are used equally (the pooled form: k), and up to as many times that as there are experts where a few take
every token. It balances the batch that it is given: one rank's, one step of an accumulation.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.core.float32 import upcast
from zoo.core.forward_context import RouterOutput
from zoo.core.ops.top_k import top_k
from zoo.errors import UsageError

IGNORED = -100  # the target of a position that is not scored


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean nats of the target ids (b, t) under logits (b, t, vocab), over the targets that are not IGNORED, in float32
    at least. NaN where no target is scored.

    Targets are those of the same positions: the caller shifts them.
    """
    return F.cross_entropy(upcast(logits.flatten(0, -2)), targets.flatten(), ignore_index=IGNORED)


def load_balancing_loss(routing: Sequence[RouterOutput]) -> Tensor:
    """The papers' form: the mean over layers of experts * sum_e f_e P_e, where f_e is the share of a layer's choices
    that fell on expert e (of its tokens, where k = 1) and P_e the mean probability that its softmax over all experts
    gives to e (Switch Transformer, Fedus et al. 2021, section 2.2, eq. 4 to 6, whose coefficient is 0.01).

    Only P has gradients. It is 1 where a layer is balanced, for every k. Raises UsageError where nothing was recorded.
    """
    _require_recorded(routing)
    return torch.stack([_switch_loss(output) for output in routing]).mean()


def _switch_loss(output: RouterOutput) -> Tensor:
    probabilities = output.logits.flatten(0, -2).softmax(-1).mean(0)
    return len(probabilities) * (output.counts() / output.chosen.numel() * probabilities).sum()


def pooled_load_balancing_loss(routing: Sequence[RouterOutput]) -> Tensor:
    """The form in transformers (`output_router_logits`), to which `router_aux_loss_coef` of published configs belongs:
    the tokens of all layers are pooled, and f_e is how many of the k choices of a pooled token fall on expert e.

    One layer gives k times `load_balancing_loss`. With several, layers that prefer different experts cancel out: each
    may be unbalanced where their sum is not. Raises UsageError where nothing was recorded, or where layers have
    different numbers of experts.
    """
    _require_recorded(routing)
    sizes = sorted({output.logits.shape[-1] for output in routing})
    if len(sizes) > 1:
        raise UsageError(f"layers with different numbers of experts ({sizes}) cannot be pooled: use the per-layer loss")
    probabilities = torch.cat([output.logits.flatten(0, -2).softmax(-1) for output in routing])
    counts = torch.stack([output.counts() for output in routing]).sum(0)
    return sizes[0] * (counts / len(probabilities) * probabilities.mean(0)).sum()


def sequence_balance_loss(routing: Sequence[RouterOutput]) -> Tensor:
    """For sigmoid routers, the complement of their bias update: the mean over layers and sequences of sum_e f_e P_e,
    where f_e is experts / k times the share of the sequence's tokens that have e among their k highest scores, and P_e
    the mean of e's score as a part of all scores of a token (DeepSeek-V3, section 2.1.2, eq. 17 to 20, whose
    coefficient is 0.0001).

    As in the paper the k highest are those without correction and groups, so f is not what the router chose. Only P has
    gradients. It is 1 where a sequence is balanced. Raises UsageError where nothing was recorded.
    """
    _require_recorded(routing)
    return torch.stack([_sequence_loss(output) for output in routing]).mean()


def _sequence_loss(output: RouterOutput) -> Tensor:
    scores, (experts, k) = output.logits.sigmoid(), (output.logits.shape[-1], output.chosen.shape[-1])
    is_best = torch.zeros_like(scores).scatter_(-1, top_k(scores, k)[1], 1.0)
    shares = experts / k * is_best.mean(-2)
    return (shares * (scores / scores.sum(-1, keepdim=True)).mean(-2)).sum(-1).mean()


def _require_recorded(routing: Sequence[RouterOutput]) -> None:
    if not routing:
        raise UsageError("no routing was recorded: the model has no experts, or ran outside recorded_routing()")
