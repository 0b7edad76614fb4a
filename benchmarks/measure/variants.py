"""Variants of one layer's attention, measured at each context. They have the same weights and take turns.

A `Comparison` finds the attention in a model, describes its variants and prepares their steps; `run` times them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from benchmarks.measure.blocks import DECODE, build_block, time_columns
from benchmarks.measure.devices import CPU, require_memory
from benchmarks.measure.runners import TOLERANCE
from benchmarks.measure.timing import Samples, Task, measure
from benchmarks.output.progress import progress
from zoo.cli.tables import Row
from zoo.units import dtype_name


@dataclass(frozen=True)
class VariantsConfig:
    """Settings of the measurement.

    `contexts`: tokens that the last one sees, itself included. `phases`: DECODE is one token after the others, PREFILL
    all of them at once.
    """

    contexts: Sequence[int]
    phases: Sequence[str] = (DECODE,)
    dtype: torch.dtype = torch.float32
    repeat: int = 5
    seed: int = 0

    def new(self, phase: str, context: int) -> int:
        """Returns the number of new tokens of a pass."""
        return 1 if phase == DECODE else context


class Prepared(NamedTuple):
    """A variant at a context: its `step` (None: it does not fit), and the columns of its row that are already known."""

    step: Callable[[], object] | None
    found: Row


class Comparison(ABC):
    """The variants of an attention `spec` in a model of width `dim`."""

    MODEL: ClassVar[str]  # the default model
    FEATURE: ClassVar[str]  # the name of the attention, for an error
    CONTEXTS: ClassVar[tuple[int, ...]]  # tokens
    VARIANTS: ClassVar[tuple[str, ...]]
    TIMED: ClassVar[str]  # the first word of the time columns

    def __init__(self, spec: Any, dim: int, config: VariantsConfig) -> None:
        self.spec, self.dim, self.config = spec, dim, config

    @staticmethod
    @abstractmethod
    def measures(mixer: object) -> bool:
        """Whether this comparison measures such a mixer."""

    @abstractmethod
    def row(self, variant: str, phase: str, context: int) -> Row:
        """Returns every column in its order, with None in the measured ones."""

    @abstractmethod
    def prepare(self, module: nn.Module, phase: str, context: int) -> dict[str, Prepared]:
        """Returns the variants of `module`, which was built from the spec. Each has run once."""

    @abstractmethod
    def relate(self, rows: Sequence[Row]) -> None:
        """Fills the columns that compare the rows of one phase and context."""

    @staticmethod
    @abstractmethod
    def failures(rows: Sequence[Row]) -> list[str]:
        """Returns a line for each measured fact that violates a requirement."""

    def require_weight_memory(self) -> None:
        """Raises NotAvailable if not even the weights fit into the free memory."""
        what, advice = "the weights of one layer's attention need", "--tiny measures it at toy widths"
        require_memory(self.spec.params(self.dim) * self.config.dtype.itemsize, CPU, what, lambda free: advice)

    def settings(self) -> Row:
        """Returns the columns with the conditions of the measurement."""
        return {"dtype": dtype_name(self.config.dtype), "threads": torch.get_num_threads()}

    @property
    def bound(self) -> float:
        """The largest difference that counts as equal, as a share of the largest output."""
        return TOLERANCE[self.config.dtype]

    def rows(self, phase: str, context: int, found: Mapping[str, Row], samples: Samples) -> list[Row]:
        """Returns one row for each variant that was timed or is too large."""
        made = [
            self.row(variant, phase, context) | found[variant] | time_columns(self.TIMED, samples.get((variant,), []))
            for variant in self.VARIANTS
            if (variant,) in samples or found.get(variant, {}).get("too_large")
        ]
        self.relate(made)
        return made


def run(comparison: Comparison, rows: list[Row]) -> None:
    """Measures all phases and contexts into `rows`, which keep the results so far after an exception or Ctrl-C."""
    config = comparison.config
    module = build_block(comparison.spec, comparison.dim, config.dtype, config.seed)
    for phase, context in product(config.phases, config.contexts):
        with torch.inference_mode(), progress(f"measuring {phase} at {context:,} tokens") as bar:
            prepared, samples = comparison.prepare(module, phase, context), Samples()
            tasks = [Task.ready((variant,), each.step) for variant, each in prepared.items() if each.step]
            try:
                measure(tasks, samples, repetitions=config.repeat, tick=bar.tick, expect=bar.expect)
            finally:
                found = {variant: each.found for variant, each in prepared.items()}
                rows += comparison.rows(phase, context, found, samples)
