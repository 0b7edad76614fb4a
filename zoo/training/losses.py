"""The training losses: cross entropy of the next token, and losses that keep experts equally used.

A balancing loss takes the routing that `zoo.core.forward_context.recorded_routing` collects from one forward pass. It
is 1 where all experts are used equally (the pooled form: k), and grows to the number of experts where a few take every
token. It balances its own batch: that of one rank, of one step of an accumulation.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.core.float32 import upcast
from zoo.core.forward_context import RouterOutput
from zoo.core.top_k import top_k
from zoo.errors import UsageError

IGNORED = -100  # the target of a position that is not scored


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean nats of the target ids (b, t) under logits (b, t, vocab), over the targets that are not IGNORED.

    It is computed in float32 at least, and NaN where no target is scored. Targets are those of the same positions: the
    caller shifts them.
    """
    return F.cross_entropy(upcast(logits.flatten(0, -2)), targets.flatten(), ignore_index=IGNORED)


def load_balancing_loss(routing: Sequence[RouterOutput]) -> Tensor:
    """Returns the load-balancing loss of the papers: the mean over layers of experts * sum_e f_e P_e.

    f_e is the share of a layer's choices that fell on expert e (of its tokens, where k = 1). P_e is the mean
    probability that its softmax over all experts gives to e (Switch Transformer, Fedus et al. 2021, section 2.2, eq. 4
    to 6, whose coefficient is 0.01).

    Only P has gradients. It is 1 where a layer is balanced, for every k. Raises UsageError where nothing was recorded.
    """
    _require_recorded(routing)
    return torch.stack([_switch_loss(output) for output in routing]).mean()


def _switch_loss(output: RouterOutput) -> Tensor:
    probabilities = output.logits.flatten(0, -2).softmax(-1).mean(0)
    return len(probabilities) * (output.counts() / output.chosen.numel() * probabilities).sum()


def pooled_load_balancing_loss(routing: Sequence[RouterOutput]) -> Tensor:
    """Returns the load-balancing loss of transformers (`output_router_logits`), which pools the tokens of all layers.

    f_e is the number of a pooled token's k choices that fall on expert e. `router_aux_loss_coef` of published configs
    belongs to this form. One layer gives k times `load_balancing_loss`. With several, layers that prefer different
    experts cancel out: each may be unbalanced where their sum is not. Raises UsageError where nothing was recorded, or
    where layers have different numbers of experts.
    """
    _require_recorded(routing)
    sizes = sorted({output.logits.shape[-1] for output in routing})
    if len(sizes) > 1:
        raise UsageError(f"layers with different numbers of experts ({sizes}) cannot be pooled: use the per-layer loss")
    probabilities = torch.cat([output.logits.flatten(0, -2).softmax(-1) for output in routing])
    counts = torch.stack([output.counts() for output in routing]).sum(0)
    return sizes[0] * (counts / len(probabilities) * probabilities.mean(0)).sum()


def sequence_balance_loss(routing: Sequence[RouterOutput]) -> Tensor:
    """Returns the balancing loss of sigmoid routers, beside their bias update: the mean over layers and sequences of
    sum_e f_e P_e.

    f_e is experts / k times the share of the sequence's tokens that have e among their k highest scores. P_e is the
    mean of e's score as a share of all scores of a token (DeepSeek-V3, section 2.1.2, eq. 17 to 20, whose coefficient
    is 0.0001).

    As in the paper, the k highest scores are those without correction and groups, so f is not the router's choice. Only
    P has gradients. It is 1 where a sequence is balanced. Raises UsageError where nothing was recorded.
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
