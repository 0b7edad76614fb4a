"""The models of a comparison, in their small forms at an equal budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from benchmarks.analytic.models import NamedSpec, representatives
from zoo.errors import SpecError
from zoo.model.decoder import Decoder
from zoo.swaps.grammar import apply_swaps
from zoo.swaps.scaled import Match, Scaled, resolved, scaled

VOCAB = 256  # bytes


@dataclass(frozen=True)
class Entry:
    """A model of the comparison: what was named, with its swaps, and the small form that is trained."""

    model: NamedSpec
    scaled: Scaled

    @property
    def spec(self) -> Decoder:
        """The small form."""
        return self.scaled.spec

    @property
    def label(self) -> str:
        """The name and the swaps."""
        return f"{self.model.name} {self.model.swap}" if self.model.swap else self.model.name


def small_models(
    names: Sequence[str],
    swaps: Sequence[str] = (),
    params: int = 200_000,
    match: Match = "params",
    context: int = 256,
    ignore_fields: Iterable[str] = (),
) -> list[Entry]:
    """The small form of each named model (none: of every family), followed by one more for each of `swaps`, which
    changes the small form; its budget is met again. A swap of several changes has ";" between them.

    Raises UsageError for unknown names, for swaps without names and for ones that cannot be parsed, SpecError where a
    budget is too small.
    """
    found = []
    for model in representatives(names, (), ignore_fields):
        try:
            small = scaled(model.spec, params, match=match, vocab=VOCAB, context=context)
            found.append(Entry(replace(model, spec=small.spec), small))
            for swap in swaps:
                changed, dropped = apply_swaps(small.spec, [each.strip() for each in swap.split(";")])
                again = resolved(changed, params, match=match)
                named = replace(model, spec=again.spec, size=None, swap=swap, dropped=", ".join(dropped) or None)
                found.append(Entry(named, again))
        except SpecError as error:
            raise SpecError(f"{model.name}: {error}") from error
    return found
