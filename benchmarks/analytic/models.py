"""Models that are named on a command line or shown in a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.analytic import weight_forms
from benchmarks.analytic.weight_forms import WeightForm
from weights.specs import find_spec
from zoo.architectures import families
from zoo.catalog import folded, sizes
from zoo.cli.tables import Row
from zoo.errors import UsageError
from zoo.hf.config import Size
from zoo.model.decoder import Decoder
from zoo.swaps.grammar import apply_swaps


@dataclass(frozen=True)
class NamedSpec:
    """A named spec with its published size (None: not published).

    `swap`: the swaps that were applied to the model of that name. `dropped`: the features that the swaps removed.
    `stored`: the format of the model's weights, if a config.json states it.
    """

    name: str
    spec: Decoder
    size: Size | None = None
    swap: str | None = None
    dropped: str | None = None
    stored: WeightForm | None = None

    @property
    def released_form(self) -> WeightForm:
        """The format of the model's released weights. A swapped model keeps the format of the original model."""
        return self.stored or weight_forms.released_form(self.name)

    @property
    def label(self) -> str:
        """The name, with a star if a swap has changed the model."""
        return self.name + ("*" if self.swap else "")


def about(model: NamedSpec, against: NamedSpec | None = None) -> Row:
    """Returns the first entries of every row about a model, or about a model and the model it is compared with."""
    hub = model.size.hub if model.size else None
    row = {"model": model.name, "hub": hub, "swap": model.swap, "dropped": model.dropped}
    return row | ({"against": against.label, "against_swap": against.swap} if against else {})


def chosen(
    names: Sequence[str], swaps: Sequence[str] = (), ignore_fields: Iterable[str] = (), smallest: bool = False
) -> list[NamedSpec]:
    """Returns the named models, in the given order and without duplicates; no names mean every family.

    A family means all its sizes or, with `smallest`, its smallest size under the family's name. With `swaps`, each
    model is followed by its swapped version. Raises UsageError for an unknown name, and for swaps without names.
    """
    if swaps and not names:
        raise UsageError("--swap changes the models that are named: name one, as in qwen3-8b --swap 'GQA(window=4096)'")
    found: dict[str, NamedSpec] = {}
    for name in names or families():
        family = folded(name)
        if family not in families():
            models = [one(name, ignore_fields)]
        else:
            models = [replace(one(family), name=family)] if smallest else [*map(one, families()[family].SIZES)]
        for model in models:
            same = found.setdefault(model.name, model)
            if same.spec != model.spec:  # two folders, or two files, with models of one name
                found[name] = replace(model, name=name)
    return [each for model in found.values() for each in ((model, swapped(model, swaps)) if swaps else (model,))]


representatives = partial(chosen, smallest=True)  # one model for each family


def swapped(model: NamedSpec, swaps: Sequence[str]) -> NamedSpec:
    """Returns the model, under its own name, with swaps (zoo.swaps.grammar) applied in turn."""
    spec, dropped = apply_swaps(model.spec, swaps)
    return NamedSpec(
        model.name, spec, swap="; ".join(swaps), dropped=", ".join(dropped) or None, stored=model.released_form
    )


def one(name: str, ignore_fields: Iterable[str] = ()) -> NamedSpec:
    """Returns the model that a word names (weights.specs). A family means its smallest preset."""
    found = find_spec(name, ignore_fields)
    if found.preset:
        return NamedSpec(found.preset, found.spec, sizes()[found.preset])
    return NamedSpec(found.name, found.spec, stored=weight_forms.config_form(found.config or {}))
