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
TASK_LAYERS, TASK_VOCAB = 2, 64  # for the forms that learn synthetic tasks: recall takes two layers of attention


@dataclass(frozen=True)
class Entry:
    """A model of the comparison: the named model with its swaps, and its two small forms.

    `scaled` is trained on text. `on_tasks` has two layers and half as many parameters, and learns synthetic tasks.
    """

    model: NamedSpec
    scaled: Scaled
    on_tasks: Scaled

    @property
    def spec(self) -> Decoder:
        """The small form that learns text."""
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
    """Returns the small forms of each named model (no names: of every family).

    For each of `swaps`, another entry follows: its small forms are changed, then meet their budgets again. A swap of
    several changes has ";" between them.

    Raises UsageError for unknown names, for swaps without names and for swaps that cannot be parsed, SpecError for a
    budget that is too small.
    """
    found = []
    for model in representatives(names, (), ignore_fields):
        try:
            small = scaled(model.spec, params, match=match, vocab=VOCAB, context=context)
            on_tasks = scaled(
                model.spec, params // 2, match=match, vocab=TASK_VOCAB, context=context, layers=TASK_LAYERS
            )
            found.append(Entry(replace(model, spec=small.spec), small, on_tasks))
            for swap in swaps:
                changed, dropped = apply_swaps(small.spec, changes := [each.strip() for each in swap.split(";")])
                again = resolved(changed, params, match=match)
                two_layers = resolved(apply_swaps(on_tasks.spec, changes)[0], params // 2, match=match)
                named = replace(model, spec=again.spec, size=None, swap=swap, dropped=", ".join(dropped) or None)
                found.append(Entry(named, again, two_layers))
        except SpecError as error:
            raise SpecError(f"{model.name}: {error}") from error
    return found
