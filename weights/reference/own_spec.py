"""Compares a model that has no reference implementation with its own spec: sizes of parameters and cache with the
formulas, and decoding through the cache with one forward pass."""

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from weights.loading import fill
from weights.matching import Source
from zoo.cli.card import checks_text
from zoo.cli.self_check import Facts, check_decoding, failures, require_free_memory
from zoo.model.decoder import Decoder
from zoo.units import dtype_name


@dataclass(frozen=True)
class SpecReport:
    """The comparison of a model with its own spec: facts about the `built` model and its `decoded` tokens, as
    `zoo.build --json` prints them."""

    source: str
    built: Facts
    decoded: Facts

    @property
    def failures(self) -> list[str]:
        """A line for each comparison that failed."""
        return failures(self.built, self.decoded)

    @property
    def passed(self) -> bool:
        """Whether every comparison passed."""
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """Returns the report for JSON."""
        facts = {"built": self.built, "decoded": self.decoded, "failures": self.failures}
        return {"source": self.source, "passed": self.passed, **facts}

    def __str__(self) -> str:
        verdict = "equal to its spec" if self.passed else f"NOT equal to its spec: {'; '.join(self.failures)}"
        about = "No reference implementation reads this layout: compared with its own spec."
        return f"{self.source}\n{about}\n\n{checks_text(self.built, self.decoded)}\n\n{verdict}"


@torch.no_grad()
def own_parity(source: str, opened: Source, spec: Decoder, dtype: torch.dtype, seed: int) -> SpecReport:
    """Compares a source's model with its spec, on the CPU. Raises the errors of `weights.load`, and NotAvailable if the
    model does not fit in memory."""
    device = torch.device("cpu")
    require_free_memory(spec, device, dtype)
    began = perf_counter()
    model = fill(spec, opened, device, dtype)
    facts = {"device": "cpu", "dtype": dtype_name(dtype), "seconds": perf_counter() - began}
    facts |= {"parameters": sum(each.numel() for each in model.parameters()), "formula": spec.params()}
    return SpecReport(source, facts, check_decoding(model, dtype, seed))
