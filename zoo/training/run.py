"""A run: training that logs each step, evaluates, keeps checkpoints, and resumes after an interruption.

The folder of a run holds log.jsonl, `checkpoints/` and the token file. A step depends only on the step before it: a run
that is killed and resumed on one device gives the same losses to the bit. With several processes all run it, and the
first one writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from zoo.core import kernels, processes
from zoo.core.devices import machine
from zoo.errors import MalformedError, UsageError, enough
from zoo.training import checkpoints as stored
from zoo.training.batches import Batch
from zoo.training.log import Log, NoLog
from zoo.training.loop import Trainer, evaluate
from zoo.training.speed import seconds

LOG, CHECKPOINTS = "log.jsonl", "checkpoints"
CHECKPOINT_SECONDS = 600  # a run that evaluates rarely writes a checkpoint at least this often
COMPARED = ("spec", "config", "data")  # facts in which a resumed run must agree
MIN_TIMED, MAX_TIMED, TIMED_SHARE = 3, 20, 0.03  # steps that are timed, and the share of the time that they may take
Row = dict[str, Any]


@dataclass(frozen=True)
class Material:
    """The data of a run: the `batch` of each step, counted from 0, and the `heldout` batches.

    `bits_per_byte` converts nats and the number of scored targets into bits per byte of the held-out text. `sample`
    returns a text that the model writes.
    """

    batch: Callable[[int], Batch]
    heldout: Callable[[], Iterable[Batch]]
    bits_per_byte: Callable[[float, int], float]
    sample: Callable[[], str] | None = None


@dataclass
class Run:
    """A run in a folder. `facts` go into every checkpoint: "spec", "config" and "data", in which a resumed run must
    agree, and others that describe the run. It evaluates after each `every` steps and after the last one."""

    folder: Path
    trainer: Trainer
    material: Material
    facts: Mapping[str, Any]
    every: int
    seconds: float = 0.0  # of training steps, over all processes that continued the run
    row: Row | None = None  # row of the resumed checkpoint

    def restore(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        """Continues after a checkpoint with this `state`, on the kernels of that time. Raises UsageError if the run
        differs, naming the differences, and MalformedError for a damaged checkpoint."""
        self._require_same(state)
        self.trainer.restore(state["step"], *stored.read_tensors(checkpoint))
        self.seconds, self.row = float(state["seconds"]), dict(state["row"])
        kernels.use(_recorded_kernels(state))

    def steps(self) -> Iterator[Row]:
        """Trains to the end, and yields each step's row when it is logged and its checkpoint, if any, is on disk.

        The first row is that of step 0, with an evaluation and no loss, or that of the resumed checkpoint. Raises
        DivergedError for a loss that is not finite, NotAvailable for a disk that fails or is full: the last checkpoint
        stays.
        """
        trainer, steps = self.trainer, self.trainer.config.steps
        saved = perf_counter()
        if self.row is None:
            self.row = {"step": 0, "tokens": 0} | self.evaluate()
            self._write(self.row)
        # The log has the row of a checkpoint after the checkpoint is there, which holds it too: a folder without a
        # checkpoint never has a log.
        with NoLog() if processes.rank() else Log(self.folder / LOG, trainer.step) as log:
            log.write(self.row)
            yield self.row
            while trainer.step < steps:
                row = self._step()
                if row["step"] % self.every == 0 or row["step"] == steps:
                    row |= self.evaluate()
                if "bits_per_byte" in row or _is_over(CHECKPOINT_SECONDS, saved):
                    log.flush()
                    self._write(row)
                    saved = perf_counter()
                log.write(row)
                yield row

    def evaluate(self) -> Row:
        """Returns bits per byte and accuracy on the held-out text, and a sample."""
        found = evaluate(self.trainer.model, self.material.heldout(), self.trainer.config.autocast)
        bits = self.material.bits_per_byte(found.nats, found.scored)
        row: Row = {"bits_per_byte": bits, "accuracy": found.accuracy}
        return row if self.material.sample is None else row | {"sample": self.material.sample()}

    def _step(self) -> Row:
        began = perf_counter()
        result = self.trainer.train_step(self.material.batch(self.trainer.step))
        took = perf_counter() - began
        self.seconds += took
        tokens = self.trainer.config.tokens_per_step
        return {
            "step": result.step,
            "tokens": result.step * tokens,
            **{name: value for name, value in result._asdict().items() if name != "step"},
            "seconds": self.seconds,
            "tokens_per_second": tokens / took,
        }

    def _write(self, row: Row) -> None:
        state = {
            **self.facts,
            "row": row,
            "bits_per_byte": row.get("bits_per_byte"),
            "seconds": self.seconds,
            "kernels": kernels.choices(),
            "machine": machine() | {"device": str(self.trainer.device), "processes": processes.ranks()},
        }
        tensors = self.trainer.tensors()
        if processes.rank() == 0:
            stored.write_checkpoint(self.folder / CHECKPOINTS, self.trainer.step, *tensors, state)

    def _require_same(self, state: Mapping[str, Any]) -> None:
        lines = [line for key in COMPARED for line in stored.json_differences(state.get(key), self.facts[key], key)]
        if lines:
            raise UsageError(f"{self.folder} holds another run: {enough(lines, 3)}")


def facts(spec: Any, trainer: Trainer, data: Mapping[str, Any], **others: Any) -> Row:
    """Returns the facts of a run as JSON: its spec, its config, and its data."""
    return {"spec": stored.as_json(spec), "config": stored.as_json(trainer.config), "data": dict(data), **others}


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the last checkpoint of the run in a folder; None where there is no run."""
    found = stored.checkpoints(folder / CHECKPOINTS)
    return found[-1] if found else None


def same_sums(state: Mapping[str, Any]) -> bool:
    """Whether threads, processes and kernels are those of the checkpoint; with others, sums are added up in another
    order."""
    then = state.get("machine", {})
    return bool(
        then.get("threads") == torch.get_num_threads()
        and then.get("processes", 1) == processes.ranks()
        and _recorded_kernels(state) == state["kernels"]
    )


def _recorded_kernels(state: Mapping[str, Any]) -> dict[str, str]:
    """Returns the kernels of a checkpoint. Older ones name kernels by classes of sizes that no longer exist: plain
    kernels replace them."""
    try:
        kernels.parse(state["kernels"], "the checkpoint")
    except MalformedError:
        return {}
    return dict(state["kernels"])


def time_steps(trainer: Trainer, batch: Callable[[int], Batch], budget: float = 0.0) -> float:
    """Returns the seconds of a step, measured on the first batches without changing the model.

    The measurement takes a small share of `budget` seconds. The first step, which compiles code, does not count.
    """
    times, spent = list[float](), 0.0
    trainer.rehearse(batch(0))
    while processes.from_first(partial(_goes_on, len(times), spent, budget)):
        times.append(seconds(partial(trainer.rehearse, batch(len(times))), trainer.device))
        spent += times[-1]
    return median(times)


def _goes_on(timed: int, spent: float, budget: float) -> bool:
    return timed < MIN_TIMED or (timed < MAX_TIMED and spent < TIMED_SHARE * budget)


def _is_over(limit: float, began: float) -> bool:
    """Whether `limit` seconds have passed by the clock of the first process."""
    return processes.from_first(lambda: perf_counter() - began > limit)
