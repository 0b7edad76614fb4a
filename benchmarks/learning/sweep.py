"""The choice of learning rates: a sweep for each model, on tuning text that is not used for results.

The learning rate changes a result more than most blocks do, so every model gets its own. If the best rate is the lowest
or highest one, a better one may lie beyond: the next rate on that side is tried, at most MAX_WIDENINGS times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeVar

from zoo.errors import CheckFailed, UsageError

Model = TypeVar("Model")
DEFAULT_RATES = (8e-3, 16e-3, 32e-3)
MAX_WIDENINGS, FACTOR = 3, 2.0  # new rates per model; ratio of neighbouring rates


@dataclass(frozen=True)
class Sweep:
    """The rates that were tried, with the tuning loss of each (inf if training diverged), lowest rate first."""

    tried: tuple[tuple[float, float], ...]

    @property
    def best(self) -> float:
        """The rate with the lowest tuning loss."""
        return min(self.tried, key=lambda pair: pair[1])[0]

    @property
    def at_edge(self) -> str | None:
        """ "lowest" or "highest" if the best rate is that one of the rates tried, else None."""
        rates = [rate for rate, _ in self.tried]
        if self.best == rates[-1]:
            return "highest"
        return "lowest" if self.best == rates[0] else None

    @property
    def next_rate(self) -> float | None:
        """The rate that would widen the sweep; None if the best rate is neither the lowest nor the highest."""
        edge = self.at_edge
        return None if edge is None else self.best * FACTOR if edge == "highest" else self.best / FACTOR


def choose_rates(
    models: Sequence[Model],
    rates: Sequence[float],
    tuning_losses: Callable[[Sequence[tuple[Model, float]]], Mapping[tuple[Model, float], float]],
    widenings: int = MAX_WIDENINGS,
) -> dict[Model, Sweep]:
    """Returns the sweep of each model.

    `tuning_losses` trains (model, rate) pairs, all pairs of a round at once. It returns their losses. A pair without a
    loss, or with an infinite one, counts as diverged.
    """
    found = {model: dict[float, float]() for model in models}
    wanted = [(model, rate) for model in models for rate in rates]
    for _ in range(widenings + 1):
        losses = tuning_losses(wanted)
        for model, rate in wanted:
            found[model][rate] = losses.get((model, rate), inf)
        sweeps = {model: Sweep(tuple(sorted(tried.items()))) for model, tried in found.items()}
        wanted = [(model, new) for model, sweep in sweeps.items() if (new := sweep.next_rate) is not None]
        if not wanted:
            break
    return sweeps


def check_trained(sweeps: Iterable[tuple[str, Sweep]]) -> None:
    """Raises CheckFailed for a model, given by name, that diverged at every rate."""
    for name, sweep in sweeps:
        if all(loss == inf for _, loss in sweep.tried):
            tried = ", ".join(f"{rate:g}" for rate, _ in sweep.tried)
            raise CheckFailed(f"{name}: training failed at every learning rate ({tried}); try lower --rates")


def parse_rates(text: str) -> tuple[float, ...]:
    """Parses learning rates from "4e-3,8e-3", lowest first. Raises UsageError unless all are numbers above 0."""
    try:
        rates = sorted({float(word) for word in text.split(",")})
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < inf for rate in rates):
        raise UsageError(f"--rates {text!r}: write learning rates above 0, separated by commas, as 4e-3,8e-3,16e-3")
    return tuple(rates)
