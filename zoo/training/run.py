"""A run: training that logs each step, evaluates, keeps checkpoints, and resumes after an interruption. It also
measures its own speed.

The folder of a run holds log.jsonl, `checkpoints/` and the token file. A step depends only on the step before it. So on
one device, a run that is killed and resumed has exactly the same losses. With several processes, all of them run this
code, and only the first one writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from zoo.core import kernels, processes
from zoo.core.devices import machine
from zoo.errors import MalformedError, UsageError, enough
from zoo.model.decoder import Decoder
from zoo.model.module import Model
from zoo.spec_files import as_json, own_modules
from zoo.training import checkpoints as stored
from zoo.training.checkpoints import CHECKPOINTS
from zoo.training.loop import Trainer, evaluate
from zoo.training.losses import Batch
from zoo.training.material import Material

LOG = "log.jsonl"
CHECKPOINT_SECONDS = 600  # maximum between two checkpoints, for runs that evaluate rarely
COMPARED = ("spec", "config", "data")  # facts that may not change when a run is resumed
MIN_TIMED, MAX_TIMED, TIMED_SHARE = 3, 20, 0.03  # number of timed steps, their share of the budget
SIDES = (256, 512, 1024, 2048, 4096, 8192)  # sides of the square matrices that are multiplied
MAX_PRODUCT_SECONDS = 0.05  # no larger side is tried if its product is expected to take longer
PRODUCTS = 4  # timed products per size; the fastest counts
PROBE_SIDE, PROBE_PRODUCTS = 256, 40  # timed products for each number of threads: about 20 ms
EVALUATIONS = 10  # default per run, not counting the one before the first step
EVALUATION_SHARE = 0.2  # maximum share of the run's time
Row = dict[str, Any]


@dataclass
class Run:
    """A run in a folder. It evaluates the model every `eval_every` steps (see its options) and after the last step."""

    folder: Path
    trainer: Trainer
    material: Material
    seconds: float = 0.0  # time of all training steps, including those before a resume
    row: Row | None = None  # row of the resumed checkpoint
    _saved: float = field(default_factory=perf_counter)  # the time of the last checkpoint

    @cached_property
    def facts(self) -> Row:
        """The facts for every checkpoint, as JSON: "spec", "config" and "data", which may not change when a run is
        resumed, and "options"."""
        spec, config = as_json(self.trainer.model.spec), as_json(self.trainer.config)
        return {"spec": spec, "config": config, "data": self.material.facts, "options": asdict(self.material.options)}

    def restore(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        """Continues after a checkpoint with this `state`, and uses its kernels. Raises UsageError, which lists the
        differences, if the checkpoint is from another run. Raises MalformedError if it is damaged."""
        lines = [line for key in COMPARED for line in stored.json_differences(state.get(key), self.facts[key], key)]
        if lines:
            raise UsageError(f"{self.folder} holds another run: {enough(lines, 3)}")
        self.trainer.restore(state["step"], *stored.read_tensors(checkpoint))
        self.seconds, self.row = float(state["seconds"]), dict(state["row"])
        kernels.use(_recorded_kernels(state))

    def steps(self) -> Iterator[Row]:
        """Trains to the end. Yields the row of each step after it was logged and after its checkpoint, if it has one,
        was written.

        The first row is that of the resumed checkpoint or, in a new run, that of step 0, with an evaluation but no
        loss. Raises DivergedError if the loss is not finite, NotAvailable if the disk fails or is full. The last
        checkpoint remains.
        """
        trainer, material, steps = self.trainer, self.material, self.trainer.config.steps
        if self.row is None:
            trained = material.options.source is not None  # a sample from random weights would be noise
            self.row = {"step": 0, "tokens": 0} | evaluation(trainer.model, material, sampled=trained)
            self._write(self.row)
        # The row of a checkpoint is logged after the checkpoint is written, which holds it too. So a folder with
        # a log always has a checkpoint.
        with closing(stored.Log(self.folder / LOG, trainer.step)) as log:
            log.write(self.row)
            yield self.row
            while trainer.step < steps:
                row = self._step()
                if row["step"] % (material.options.eval_every or 1) == 0 or row["step"] == steps:
                    row |= evaluation(trainer.model, material)
                if "bits_per_byte" in row or processes.from_first(
                    lambda: perf_counter() - self._saved > CHECKPOINT_SECONDS
                ):
                    log.flush()
                    self._write(row)
                log.write(row)
                yield row

    def _step(self) -> Row:
        began = perf_counter()
        result = self.trainer.train_step(self.material.batch(self.trainer.step))
        took = perf_counter() - began
        self.seconds += took
        tokens = self.trainer.config.tokens_per_step
        row = {"step": result.step, "tokens": result.step * tokens} | result._asdict()
        return row | {"seconds": self.seconds, "tokens_per_second": tokens / took}

    def _write(self, row: Row) -> None:
        state = {
            **self.facts,
            "imports": own_modules(self.trainer.model.spec),
            "row": row,
            "bits_per_byte": row.get("bits_per_byte"),
            "seconds": self.seconds,
            "kernels": kernels.choices(),
            "machine": machine() | {"device": str(self.trainer.device), "processes": processes.ranks()},
        }
        tensors = self.trainer.tensors()
        if processes.rank() == 0:
            stored.write_checkpoint(self.folder / CHECKPOINTS, self.trainer.step, *tensors, state)
        self._saved = perf_counter()


def evaluation(model: Model, material: Material, sampled: bool = True) -> Row:
    """Returns bits per byte and accuracy on the held-out text and, if `sampled`, a sample."""
    found = evaluate(model, material.heldout(), material.options.autocast)
    bits = material.tokens.bits_per_byte(found.nats, found.scored)
    row = {"bits_per_byte": bits, "accuracy": found.accuracy}
    return row | ({"sample": material.sample(model)} if sampled else {})


def same_sums(state: Mapping[str, Any]) -> bool:
    """Whether threads, processes and kernels are the same as those of the checkpoint. If not, sums are added in another
    order, and losses differ in the last digits."""
    then = state.get("machine", {})
    return bool(
        then.get("threads") == torch.get_num_threads()
        and then.get("processes", 1) == processes.ranks()
        and _recorded_kernels(state) == state["kernels"]
    )


def _recorded_kernels(state: Mapping[str, Any]) -> dict[str, str]:
    """Returns the kernels of a checkpoint. Old checkpoints may name kernels in a format that no longer exists; then
    plain kernels are used."""
    try:
        kernels.parse(state["kernels"], "the checkpoint")
    except MalformedError:
        return {}
    return dict(state["kernels"])


# Speed.


def time_steps(trainer: Trainer, batch: Callable[[int], Batch], budget: float = 0.0) -> float:
    """Returns the seconds per training step, measured on the first batches without changing the model.

    Measuring takes a small share of the `budget` in seconds, and stops after a step that exceeds the budget. An
    additional first step, which compiles code, is not counted.
    """
    times = list[float]()

    def goes_on() -> bool:
        if times and 0 < budget < sum(times):
            return False
        return len(times) < MIN_TIMED or (len(times) < MAX_TIMED and sum(times) < TIMED_SHARE * budget)

    trainer.rehearse(batch(0))
    while processes.from_first(goes_on):
        times.append(seconds(partial(trainer.rehearse, batch(len(times))), trainer.device))
    return median(times)


def choose_threads() -> tuple[int, float]:
    """Sets torch's number of threads, after timing a product with 1, 2, 4, ... and all threads. Uses the fastest number
    if it takes less than half the time of all threads, and all threads otherwise. Returns the number of threads, and
    their speed relative to all threads.

    The threads of an operation wait for each other. If other programs use some cores, all wait for the slowest thread.
    """
    most, a = torch.get_num_threads(), torch.randn(PROBE_SIDE, PROBE_SIDE)
    times = dict[int, float]()
    for number in sorted({most, *(2**i for i in range(most.bit_length()))}):
        torch.set_num_threads(number)
        times[number] = sum(seconds(partial(torch.matmul, a, a), a.device) for _ in range(PROBE_PRODUCTS))
    fastest = min(times, key=times.__getitem__)
    best = fastest if times[most] > 2 * times[fastest] else most
    torch.set_num_threads(best)
    return best, times[most] / times[best]


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the FLOPs per second of the fastest square matrix product on a device. It takes half a second."""
    rate = 0.0
    for side in SIDES:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        fastest = min(seconds(partial(torch.matmul, a, b), device) for _ in range(PRODUCTS))
        rate = max(rate, 2 * side**3 / fastest)
        if 8 * fastest > MAX_PRODUCT_SECONDS:  # the next side takes 8 x as long
            break
    return rate


def training_flops_per_token(spec: Decoder, context: int) -> float:
    """Returns the training FLOPs per token, in sequences of `context` tokens: three times the FLOPs of the forward
    pass.

    For each product of the forward pass, the backward pass computes two: the gradients of the input and of the weight.
    Recomputation to save memory is not counted (Chowdhery et al., PaLM, appendix B).
    """
    return 3 * spec.flops(0, context) / context


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds that a call takes, including its work on the device."""
    began = perf_counter()
    run()
    if device.type in ("cuda", "mps", "xpu"):
        getattr(torch, device.type).synchronize()
    return perf_counter() - began


def steps_within(budget: float, step: float, evaluation: float, every: int | None) -> tuple[int, int]:
    """Returns the number of steps that fit into `budget` seconds, and the number of steps between evaluations.

    A step takes `step` seconds and an evaluation `evaluation` seconds. One evaluation comes before the first step.
    `every` sets the number of steps between evaluations. If it is None, there are EVALUATIONS evaluations, or fewer so
    that they take at most EVALUATION_SHARE of the time. Raises UsageError if there is no time for a single step.
    """
    evaluations = max(1, min(EVALUATIONS, int(EVALUATION_SHARE * budget / evaluation)))
    reserved = evaluation * (1 + (evaluations if every is None else 0))
    left, each = budget - reserved, step + (evaluation / every if every else 0.0)
    if left < each:
        raise UsageError(
            f"the time is too short: {max(budget, 0):.1f} s are left after preparing, a step takes {step:.2g} s and an "
            f"evaluation {evaluation:.2g} s; give more --minutes, or --tokens"
        )
    steps = int(left / each)
    return steps, every or max(1, round(steps / evaluations))
