"""Training steps (forward, backward, AdamW) of the zoo and of the baseline, as candidates in the same timing loop.

An optimiser changes the weights, so each candidate has its own copy. All copies start from the same values. Before a
candidate is timed, its loss and gradient norm on the measured tokens must equal those of the zoo's eager mode.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure.baseline import checked_candidates, comparable
from benchmarks.measure.benchmark_models import BenchmarkModel
from benchmarks.measure.runners import (
    COMPILED,
    TOLERANCE,
    ZOO,
    Candidate,
    Runner,
    ThroughputConfig,
    Workload,
    inference,
    random_tokens,
)
from zoo.errors import CheckFailed
from zoo.model.decoder import Decoder
from zoo.model.module import Model

LEARNING_RATE = 1e-6  # so low that the routing to experts, on which the time depends, does not change
# Relative tolerance of the gradient norm.
NORM_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
MOMENTS = 2  # AdamW's running means, each as large as the weights
LOGITS_BYTES = 16  # bytes per logit: the logit, its float32 copy, its log-softmax and its gradient


class Gradients(NamedTuple):
    """The loss of a batch in nats per token, and the norm over all gradients."""

    loss: float
    norm: float


@dataclass(frozen=True)
class TrainingRunner(Runner):
    """A model in training mode with torch's fused AdamW. `forward`: tokens (b, t) -> logits (b, t, vocab)."""

    forward: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, model: nn.Module, forward: Callable[[Tensor], Tensor]) -> Self:
        """Returns the runner of a model, with an optimiser of its own.

        Dropout is off: GPT-2's config turns it on in transformers, and the zoo has none.
        """
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return cls(model.train(), forward, torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True))

    def train_step(self, tokens: Tensor) -> None:
        """Takes an optimiser step on tokens (b, t + 1), whose first t predict the next one. Clears the gradients."""
        with torch.inference_mode(False):
            self._loss(tokens).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def gradients(self, tokens: Tensor) -> Gradients:
        """Returns the loss and the gradient norm of a step on tokens (b, t + 1). The weights do not change."""
        with torch.inference_mode(False):
            loss = self._loss(tokens.clone())
            loss.backward()
            norms = [weight.grad.float().norm() for weight in self.model.parameters() if weight.grad is not None]
            self.optimizer.zero_grad()
            return Gradients(loss.item(), torch.stack(norms).norm().item())

    def release(self) -> None:
        """Frees the optimiser's moments; the next step creates new ones."""
        self.optimizer.state.clear()

    def _loss(self, tokens: Tensor) -> Tensor:
        logits = self.forward(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def training_candidates(benchmark_model: BenchmarkModel, model: Model, config: ThroughputConfig) -> Iterator[Candidate]:
    """Yields candidates for the zoo in each mode, then those of `checked_candidates` for the baseline.

    Each candidate trains a copy of `model`. Also raises CheckFailed if the zoo's results differ when it is compiled.
    """
    (work,) = config.workloads
    tokens = random_tokens(work, model.spec.vocab, config.seed, config.device)

    def gradients(runner: TrainingRunner) -> Gradients:
        with inference(config.threads):  # sets the number of threads
            return runner.gradients(tokens)

    expected = gradients(TrainingRunner.of(model, model))

    def difference(runner: TrainingRunner) -> str | None:
        found = gradients(runner)
        for what, value, other, bound in (
            ("the loss", found.loss, expected.loss, TOLERANCE[config.dtype]),
            ("the norm of the gradients", found.norm, expected.norm, NORM_TOLERANCE[config.dtype]),
        ):
            if comparable(benchmark_model, config) and not abs(value - other) <= bound * abs(other):  # a NaN, too
                return f"{what} is {value:.7g}, and {other:.7g} in the zoo's eager mode"
        return None

    for mode in config.modes:
        own = copy.deepcopy(model)
        if mode == COMPILED:
            own.compile()
        runner = TrainingRunner.of(own, own)
        if mode == COMPILED and (problem := difference(runner)):
            raise CheckFailed(f"{benchmark_model.label}: compiled, {problem}; nothing was measured")
        yield Candidate(benchmark_model, ZOO, mode, runner)
    if config.baseline:
        yield from checked_candidates(benchmark_model, model, config, baseline_runner, difference)


def baseline_runner(reference: Any, compiled: bool) -> TrainingRunner:
    """Returns the runner for a copy of a transformers model."""
    own = copy.deepcopy(reference)
    call = torch.compile(own) if compiled else own
    return TrainingRunner.of(own, lambda tokens: call(input_ids=tokens, use_cache=False).logits)


def training_flops(spec: Decoder, work: Workload) -> int:
    """Returns the FLOPs of a training step: a forward pass with all logits, and a backward pass with twice its FLOPs.

    The backward pass computes gradients of weights and of inputs. Each costs as many FLOPs as a forward pass.
    """
    return 3 * work.batch * spec.flops(0, work.tokens)


def training_bytes(spec: Decoder, dtype: torch.dtype, work: Workload, copies: int) -> int:
    """Returns the bytes of weights and moments of `copies` candidates, plus one's gradients and activations."""
    tokens, size = work.batch * work.tokens, dtype.itemsize
    # Activations that a layer keeps for its gradients: inputs and outputs of the matrix products, and of norms in
    # float32.
    kept = sum(2 * layer.active_params(spec.dim) // spec.dim * size + 8 * spec.dim * 4 for layer in spec.layers)
    heads = sum(layer.mixer.sink_heads for layer in spec.layers if layer.mixer)
    scores = 3 * heads * work.tokens * 4  # with sinks, scores may be materialised, masked, and turned to probabilities
    held = (copies * (1 + MOMENTS) + 1) * spec.params() * size
    return held + tokens * (kept + scores + spec.vocab * LOGITS_BYTES)
