"""Variants of one layer's attention, measured at each context. They have the same weights and take turns.

A `Comparison` finds the attention in a model, describes its variants and prepares their steps; `run` times them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from benchmarks.measure.blocks import DECODE, build_block
from benchmarks.measure.environment import CPU, require_memory
from benchmarks.measure.runners import TOLERANCE
from benchmarks.measure.timing import Samples, Task, measure
from benchmarks.output.progress import progress
from zoo.cli.tables import Row
from zoo.units import dtype_name


@dataclass(frozen=True)
class VariantsConfig:
    """Settings of the measurement.

    `contexts`: numbers of tokens that the last token sees, itself included. `phases`: DECODE passes only the last
    token, PREFILL all tokens at once.
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
    """A variant at a context: its `step` (None: too large for memory), and the columns of its row known so far."""

    step: Callable[[], object] | None
    found: Row


def ratio(first: float | None, second: float | None) -> float | None:
    """Returns first / second; None if either is missing."""
    return first / second if first and second else None


class Comparison(ABC):
    """The variants of an attention `spec` in a model of width `dim`."""

    MODEL: ClassVar[str]  # the default model
    FEATURE: ClassVar[str]  # the name of the attention in error messages
    CONTEXTS: ClassVar[tuple[int, ...]]  # tokens
    VARIANTS: ClassVar[tuple[str, ...]]
    REFERENCE: ClassVar[str]  # the variant whose time the others are compared with
    EXPECTED: ClassVar[str]  # name, in error messages, of the output that other variants must match

    def __init__(self, spec: Any, dim: int, config: VariantsConfig) -> None:
        self.spec, self.dim, self.config = spec, dim, config
        # The largest difference that counts as equal, as a share of the largest output.
        self.bound = TOLERANCE[config.dtype]

    @staticmethod
    @abstractmethod
    def measures(mixer: object) -> bool:
        """Whether this comparison can measure the mixer."""

    @abstractmethod
    def prepare(self, module: nn.Module, phase: str, context: int) -> dict[str, Prepared]:
        """Returns the variants of `module`, which was built from the spec, after one run of each variant."""

    @abstractmethod
    def row(
        self, variant: str, phase: str, context: int, seconds: Sequence[float] = (), reference_s: float | None = None
    ) -> Row:
        """Returns the row of a variant that took `seconds`, with None in the columns that only `prepare` fills.

        `reference_s` is the median time of `REFERENCE`.
        """

    @classmethod
    def failures(cls, rows: Sequence[Row]) -> list[str]:
        """Returns a line for each cache size that differs from the formula, and for each output outside its bound."""
        lines = []
        for row in rows:
            phase = f" in {row['phase']}" if "phase" in row else ""
            where, apart = f"{row['variant']}{phase} at {row['context']} tokens", row["difference"]
            if (allocated := row.get("allocated_bytes")) not in (None, row.get("kv_bytes")):
                lines.append(f"{where} allocated {allocated:,} bytes, the formula says {row['kv_bytes']:,}")
            if row["variant"] != cls.REFERENCE and apart is not None and not apart <= row["bound"]:  # a NaN fails, too
                lines.append(f"{where} differs from {cls.EXPECTED} by {apart:.1e} of it, above {row['bound']:.0e}")
        return lines

    def require_weight_memory(self) -> None:
        """Raises NotAvailable unless the weights fit into the free memory."""
        what, advice = "the weights of one layer's attention need", "--tiny measures it at toy widths"
        require_memory(self.spec.params(self.dim) * self.config.dtype.itemsize, CPU, what, lambda free: advice)

    def settings(self) -> Row:
        """Returns the columns with the conditions of the measurement."""
        return {"dtype": dtype_name(self.config.dtype), "threads": torch.get_num_threads()}


def run(comparison: Comparison, rows: list[Row]) -> None:
    """Measures all phases and contexts. After an exception or Ctrl-C, `rows` holds the results so far."""
    config = comparison.config
    module = build_block(comparison.spec, comparison.dim, config.dtype, config.seed)
    for phase, context in product(config.phases, config.contexts):
        with torch.inference_mode(), progress(f"measuring {phase} at {context:,} tokens") as bar:
            prepared, samples = comparison.prepare(module, phase, context), Samples()
            tasks = [Task.ready((variant,), each.step) for variant, each in prepared.items() if each.step]
            try:
                measure(tasks, samples, repetitions=config.repeat, tick=bar.tick, expect=bar.expect)
            finally:
                reference = samples.get((comparison.REFERENCE,))
                reference_s = median(reference) if reference else None
                rows += [
                    comparison.row(name, phase, context, times, reference_s) | each.found
                    for name, each in prepared.items()
                    if (times := samples.get((name,), [])) or not each.step
                ]
