"""The training loop: one optimiser step after another, and the evaluation of a model on held-out batches."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from zoo.blocks.routers import routers_of
from zoo.core import processes
from zoo.core.forward_context import RouterOutput, recorded_routing
from zoo.errors import CheckFailed, MalformedError, UsageError, unknown
from zoo.model.module import Model
from zoo.training import distributed
from zoo.training.losses import (
    Batch,
    cross_entropy,
    load_balancing_loss,
    require_trainable_routers,
    update_router_bias,
)


class DivergedError(CheckFailed):
    """The loss or the gradient is NaN or infinite, so training cannot continue."""


SCHEDULES = ("cosine", "wsd")
DECAY_SHARE, FINAL_SHARE = 0.2, 0.1  # decay of "wsd", of all steps; last learning rate, of the peak


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of training: `steps` optimiser steps. Each reads `batch` sequences of `context` tokens, in
    `accumulate` micro-batches.

    `learning_rate` is the peak of `rate`. A `warmup` below 1 is a share of the steps. The optimiser is AdamW with
    `betas`. `weight_decay` applies to matrices but not to embeddings. `clip` is the maximum norm of the gradient (None:
    no limit). `autocast` computes in bfloat16 and leaves the weights in their dtype. `balance` is the coefficient of
    the load-balancing loss, for softmax routers. `bias_rate` is the step size of the router bias, for routers that are
    balanced without a loss. `seed` determines the order of the data.
    """

    steps: int
    learning_rate: float
    batch: int = 8
    context: int = 256
    accumulate: int = 1
    warmup: float = 0.1
    schedule: str = "cosine"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    seed: int = 0
    autocast: bool = False
    balance: float = 0.01
    bias_rate: float = 1e-3

    def __post_init__(self) -> None:
        def require(holds: bool, message: str) -> None:
            if not holds:
                raise UsageError(message)

        for name in ("steps", "batch", "context", "accumulate"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        too_many = f"a batch of {self.batch} sequences cannot be computed in {self.accumulate} micro-batches"
        require(self.accumulate <= self.batch, too_many)
        rate, clip = self.learning_rate, self.clip
        require(0 < rate < math.inf, f"the learning rate must be above 0, got {rate:g}")
        require(clip is None or clip > 0, f"clip must be above 0, got {clip or 0:g}; None for no limit")
        require(self.weight_decay >= 0, f"weight_decay must be at least 0, got {self.weight_decay:g}")
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        warmup = f"the warm-up must be a share below 1 or from 1 to {self.steps} steps, got {self.warmup:g}"
        require(0 <= self.warmup <= self.steps, warmup)

    @property
    def tokens_per_step(self) -> int:
        """The number of tokens that a step reads."""
        return self.batch * self.context

    @property
    def warmup_steps(self) -> int:
        """The number of warm-up steps."""
        return math.ceil(self.warmup * self.steps) if self.warmup < 1 else int(self.warmup)

    def rate(self, step: int) -> float:
        """Returns the learning rate of `step`, counted from 0.

        It rises linearly to its peak during the warm-up. In the last step, it is FINAL_SHARE of the peak. "cosine"
        falls along half a cosine (Loshchilov and Hutter, SGDR, section 3, without restarts). "wsd" stays at the peak
        and falls linearly in the last DECAY_SHARE of the steps (Hu et al., MiniCPM, section 4).
        """
        steps, rising, peak = self.steps, self.warmup_steps, self.learning_rate
        if step < rising:
            return peak * (step + 1) / rising
        is_cosine = self.schedule == "cosine"
        falling = steps - rising if is_cosine else min(steps - rising, math.ceil(DECAY_SHARE * steps))
        done = max(step - (steps - falling) + 1, 0) / falling  # 1 in the last step
        share = (1 + math.cos(math.pi * done)) / 2 if is_cosine else 1 - done
        return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * share)


class StepResult(NamedTuple):
    """The result of a step, counted from 1. `loss` is the mean in nats per scored token. `balance_loss` is the mean
    over micro-batches, without its coefficient. Both are from before the step. `grad_norm` is the norm before
    clipping."""

    step: int
    loss: float
    balance_loss: float
    grad_norm: float
    learning_rate: float


class Evaluation(NamedTuple):
    """The result of a model on held-out batches: the summed loss in `nats`, the number of `scored` targets, and the
    number of `correct` ones, to which the model gave the highest probability."""

    nats: float
    scored: int
    correct: int

    @property
    def loss(self) -> float:
        """Nats per scored token."""
        return self.nats / self.scored

    @property
    def accuracy(self) -> float:
        """The share of scored targets to which the model gave the highest probability."""
        return self.correct / self.scored


class Trainer:
    """A model, its optimiser, and the number of finished steps.

    With several processes the model is sharded, and every process must call each method with the same arguments. Raises
    UsageError for a router that could not learn, and for a batch that cannot be divided among the processes.
    """

    def __init__(self, model: Model, config: TrainingConfig) -> None:
        require_trainable_routers(model.spec)
        distributed.require_ranks(model, config.batch, config.accumulate)
        self.model, self.config, self.step = model, config, 0
        model.train()
        self.optimizer = _adamw(model, config)
        # Whether a loss balances each router, in layer order. A router with a table of token ids cannot be balanced.
        specs = (router.spec for router in routers_of(model))
        self._with_loss = [not (router.has_correction or router.reads_tokens) for router in specs]

    def train_step(self, batch: Batch) -> StepResult:
        """Makes one optimiser step on a batch, which may be on another device than the model.

        The gradient is that of the mean loss over all scored targets of the batch, whatever the number of
        micro-batches. The load-balancing loss is computed for each micro-batch (and each device), and their mean is
        used. Raises UsageError if no target is scored. Raises DivergedError, before the weights change, if the loss or
        the norm of the gradient is not finite.
        """
        result = self._step(batch, self.config.rate(self.step), self.config.bias_rate)
        self.step += 1
        return result

    def rehearse(self, batch: Batch) -> None:
        """Makes a step that does not change the weights, so that kernels are chosen and compiled and the time can be
        measured. It must precede the first step, since it clears the optimiser's state. Raises the errors of
        `train_step`."""
        assert self.step == 0
        self._step(batch, 0.0, 0.0)
        self.optimizer.state.clear()

    def _step(self, batch: Batch, rate: float, bias_rate: float) -> StepResult:
        config = self.config
        self.optimizer.zero_grad(set_to_none=True)
        scored = int(batch.scored())  # batches are on the CPU, so this does not wait for the device
        if not scored:
            raise UsageError(f"step {self.step + 1}: no target of the batch is scored")
        loss = balance = torch.zeros((), device=self.device)
        routing: list[list[RouterOutput]] = []
        for micro_batch in batch.own_rows().split(config.accumulate):
            own_loss, own_balance, own_routing = self._backward(micro_batch, scored)
            loss, balance = loss + own_loss, balance + own_balance
            routing.append(own_routing)
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = clip_grad_norm_(trained, math.inf if config.clip is None else config.clip)
        loss, balance = processes.summed(torch.stack([loss, balance])).unbind()
        # only here the host waits for the device
        figures = torch.stack([loss, balance, distributed.whole(norm)]).tolist()
        if not all(map(math.isfinite, figures)):
            raise DivergedError(
                f"step {self.step + 1}: loss {figures[0]:g}, norm of the gradient {figures[2]:g}; "
                "try a lower learning rate or a longer warm-up"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        update_router_bias(self.model, _joined(routing), bias_rate)
        return StepResult(self.step + 1, figures[0], figures[1], figures[2], rate)

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the state that training changes: the model's state dict, and the optimiser's state by names such as
        "PARAMETER.exp_avg".

        With several processes, the first process gets all tensors, on the CPU, and the others get none.
        """
        optimizer = (
            (f"{name}.{key}", value)
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        )
        return distributed.gathered(self.model.state_dict().items()), distributed.gathered(optimizer)

    def restore(self, step: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Continues after `step` with tensors that `tensors` returned after that step. Raises MalformedError if they
        belong to another model."""
        parameters = dict(self.model.named_parameters())
        state: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in optimizer.items():
            name, _, part = key.rpartition(".")
            if name not in parameters or (value.ndim and value.shape != parameters[name].shape):
                raise MalformedError(f"the optimiser's state {key} {list(value.shape)} belongs to another model")
            state[name][part] = distributed.own_part(value, parameters[name]).clone()
        try:
            parts = ((name, distributed.own_part(value, parameters.get(name, value))) for name, value in model.items())
            self.model.load_state_dict(dict(parts))
        except RuntimeError as error:
            raise MalformedError(f"the weights are those of another model: {error}") from error
        self.optimizer.state.clear()
        self.optimizer.state.update({parameters[name]: parts for name, parts in state.items()})
        self.step = step

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def _backward(self, micro_batch: Batch, scored: int) -> tuple[Tensor, Tensor, list[RouterOutput]]:
        """Adds the gradient of one micro-batch of a batch that has `scored` targets. Returns the micro-batch's share of
        both losses, and the outputs of the routers."""
        inputs, targets = micro_batch.inputs.to(self.device), micro_batch.targets.to(self.device)
        with autocast(self.device, self.config.autocast), recorded_routing() as routing:
            logits = self.model(inputs)
        here = int(micro_batch.scored())
        loss = cross_entropy(logits, targets) * (here / scored) if here else 0.0 * logits.sum()
        balanced = [output for output, wanted in zip(routing, self._with_loss, strict=True) if wanted]
        micro_batches = self.config.accumulate * processes.ranks()
        balance = load_balancing_loss(balanced) / micro_batches if balanced else torch.zeros_like(loss)
        # FSDP averages gradients over ranks, but these losses must be summed.
        ((loss + self.config.balance * balance) * processes.ranks()).backward()
        return loss.detach(), balance.detach(), [RouterOutput(o.logits.detach(), o.chosen) for o in routing]


def evaluate(model: nn.Module, batches: Iterable[Batch], bfloat16: bool = False) -> Evaluation:
    """Evaluates a model on batches, in eval mode and without gradients. Several processes share the rows. Raises
    UsageError if no target is scored."""
    device = next(model.parameters()).device
    nats, scored, correct = 0.0, 0, 0
    with _eval_mode(model), torch.no_grad(), autocast(device, bfloat16):
        for batch in map(Batch.own_rows, batches):
            targets = batch.targets.to(device)
            logits = model(batch.inputs.to(device))  # even if nothing is scored: all ranks run the model together
            if count := int(batch.scored()):
                nats += float(cross_entropy(logits, targets)) * count
                correct += int((logits.argmax(-1) == targets).sum())
                scored += count
    nats, all_scored, all_correct = processes.sums(nats, scored, correct)
    if not all_scored:
        raise UsageError("nothing to evaluate: no target is scored")
    return Evaluation(nats, int(all_scored), int(all_correct))


def autocast(device: torch.device, enabled: bool) -> Any:
    """Returns a context in which matrix products are computed in bfloat16, if `enabled`."""
    # With the cache, a sharded model would keep whole bfloat16 weights of all layers until the pass ends.
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=processes.ranks() == 1)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _adamw(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Returns torch's fused AdamW. Weight decay applies to matrices, but not to norms, biases, sinks and embeddings.

    Decay of the embeddings would only change the scale of a norm's input (OLMo 2, section 3.3). The bias of a router
    that is balanced without a loss has no gradient, so the optimiser does not get it.
    """
    decayed, kept = dict[int, nn.Parameter](), dict[int, nn.Parameter]()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            matrix = parameter.ndim >= 2 and not name.endswith("bias") and not isinstance(module, nn.Embedding)
            (decayed if matrix else kept)[id(parameter)] = parameter
    groups = [
        {"params": list(decayed.values()), "weight_decay": config.weight_decay},
        {"params": list(kept.values()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _joined(micro_batches: list[list[RouterOutput]]) -> list[RouterOutput]:
    """Concatenates the routing of each layer over all micro-batches of a batch."""
    return [
        RouterOutput(torch.cat([o.logits for o in layer]), torch.cat([o.chosen for o in layer]))
        for layer in zip(*micro_batches, strict=True)
    ]
