"""The parity report: what was measured, and whether it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from weights.reference.layers import Part
from weights.reference.logits import Difference

EQUAL = 1e-5  # of the largest logit, at least 1: float32 logits that are equal but for rounding
KL = 1e-3  # nats a token: bfloat16 logits that say the same
TWICE = 2  # what bfloat16 does to the reference is what it may do to the zoo, and as much again


@dataclass(frozen=True)
class Check:
    """One figure and what it may be at most. A NaN never holds."""

    what: str
    value: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the figure is within its bound."""
        return self.value <= self.bound


@dataclass(frozen=True)
class Report:
    """How equal the zoo's model is to the reference on the same weights and prompts.

    `logits`: the zoo's from the reference's, in `dtype`. `cached`: the zoo's in chunks and single tokens through a
    cache, from its own in one pass. Of bfloat16 also, from the reference in float32 on the same weights: `exact`, the
    zoo's, and `own`, those of the reference in bfloat16, which is the yardstick.

    Where routers chose other experts (`rerouted` choices, of `logits`), that token and the later ones of its prompt are
    not counted in float32; `parts` tell whether rounding alone decided. In bfloat16, where both sides round to other
    experts now and then, a model with routers (`routed`) is judged by its median token: a few tokens with other experts
    are the whole of a mean.
    """

    source: str
    parameters: int
    dtype: str
    prompts: tuple[str, ...]
    length: int  # tokens of each prompt
    seed: int
    window: int  # tokens of the widest, 0 if there is none
    streaming: bool
    reference: str
    logits: Difference
    cached: Difference
    exact: Difference | None
    own: Difference | None
    routed: bool
    rerouted: int
    parts: tuple[Part, ...]

    @property
    def first(self) -> Part | None:
        """The first part, in order of computation, that differs by more than rounding on the reference's own input."""
        return next((part for part in self.parts if not part.holds), None)

    @property
    def checks(self) -> list[Check]:
        """What must hold."""
        return list(self._checks())

    @property
    def passed(self) -> bool:
        """Whether all of it holds."""
        return all(check.holds for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can say it."""
        first = self.first
        return {
            **asdict(self),
            "passed": self.passed,
            "checks": [asdict(check) | {"holds": check.holds} for check in self.checks],
            "first_divergent": None if first is None else asdict(first),
        }

    def _checks(self) -> Iterator[Check]:
        if self.exact is None or self.own is None:
            bound = EQUAL * max(1.0, self.logits.scale)
            yield Check("largest logit difference", self.logits.largest, bound)
            yield Check("largest difference, cached to full", self.cached.largest, bound)
        else:
            yield Check(*_twice("logit difference to float32", self.exact, self.own, self.routed))
            yield Check(*_twice("KL to float32", self.exact, self.own, self.routed, kl=True))
            # Both sides' rounding is between them; on some models the reference's alone is more than KL.
            what, value, bound = _twice("KL", self.logits, self.own, self.routed, kl=True)
            yield Check(what, value, max(KL, TWICE * bound))
            yield Check(*_twice("difference, cached to full", self.cached, self.own, self.routed))
        worst = max(self.parts, key=lambda part: part.error / part.bound)
        yield Check("largest error of one part", worst.error, worst.bound)

    def __str__(self) -> str:
        from weights.reference.table import table  # the command line's own: `import weights` does without

        return table(self)


def _twice(what: str, side: Difference, own: Difference, routed: bool, kl: bool = False) -> tuple[str, float, float]:
    """A figure's name, its value, and twice the yardstick's: of the mean over all tokens, or of the median token."""
    average = "median" if routed else "mean"
    figure = f"kl_{average}" if kl else average
    return f"{average} {what}", getattr(side, figure), TWICE * getattr(own, figure)
