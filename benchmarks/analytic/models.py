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
from zoo.hf.estimate import Estimate
from zoo.model.decoder import Decoder
from zoo.swaps.grammar import apply_swaps


@dataclass(frozen=True)
class NamedSpec:
    """A named spec with its published size (None: not published).

    `swap`: the swaps that were applied to the model of that name. `dropped`: the features that the swaps removed.
    `stored`: the format of the model's weights, if a config.json states it. `estimate`: what the spec rests on, if no
    family reads the model's config.
    """

    name: str
    spec: Decoder
    size: Size | None = None
    swap: str | None = None
    dropped: str | None = None
    stored: WeightForm | None = None
    estimate: Estimate | None = None

    @property
    def released_form(self) -> WeightForm:
        """The format of the model's released weights. A swapped model keeps the format of the original model."""
        return self.stored or weight_forms.released_form(self.name)

    @property
    def label(self) -> str:
        """The name, with a star if a swap has changed the model, and a tilde if it is estimated."""
        return ("~" if self.estimate else "") + self.name + ("*" if self.swap else "")


def about(model: NamedSpec, against: NamedSpec | None = None) -> Row:
    """Returns the first entries of every row about a model, or about a model and the model it is compared with."""
    hub = model.size.hub if model.size else None
    row: Row = {"model": model.name, "hub": hub, "swap": model.swap, "dropped": model.dropped}
    row |= {"estimated": True} if model.estimate else {}
    return row | ({"against": against.label, "against_swap": against.swap} if against else {})


def stored_parts(model: NamedSpec) -> dict[str, int]:
    """Returns the parameters in the headers of an estimated model's files, by part; {} without headers, and for a
    swapped model."""
    if model.estimate is None or model.estimate.stored is None or model.swap:
        return {}
    return dict(model.estimate.stored.breakdown(len(model.spec.layers), model.spec.tied)[0])


def stored_params(model: NamedSpec) -> tuple[int, int]:
    """Returns the parameters in the headers, and those that one token uses: without the share of the routed experts
    that the estimate's router does not choose."""
    parts = stored_parts(model)
    total, routed = sum(parts.values()), model.spec.param_breakdown().get("routed", 0)
    idle = model.spec.params() - model.spec.active_params()
    return total, total - (round(idle * parts.get("routed", 0) / routed) if routed else 0)


def chosen(
    names: Sequence[str],
    swaps: Sequence[str] = (),
    ignore_fields: Iterable[str] = (),
    smallest: bool = False,
    estimated: bool = False,
) -> list[NamedSpec]:
    """Returns the named models, in the given order and without duplicates; no names mean every family.

    `estimated`: whether configs that no family reads are estimated, instead of an error.

    A family means all its sizes or, with `smallest`, its smallest size under the family's name. With `swaps`, each
    model is followed by its swapped version. Raises UsageError for an unknown name, and for swaps without names.
    """
    if swaps and not names:
        raise UsageError("--swap changes the models that are named: name one, as in qwen3-8b --swap 'GQA(window=4096)'")
    found: dict[str, NamedSpec] = {}
    for name in names or families():
        family = folded(name)
        if family not in families():
            models = [one(name, ignore_fields, estimated)]
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
        model.name,
        spec,
        swap="; ".join(swaps),
        dropped=", ".join(dropped) or None,
        stored=model.released_form,
        estimate=model.estimate,
    )


def one(name: str, ignore_fields: Iterable[str] = (), estimated: bool = False) -> NamedSpec:
    """Returns the model that a word names (weights.specs). A family means its smallest preset. `estimated`: whether a
    config that no family reads is estimated."""
    found = find_spec(name, ignore_fields, estimated)
    if found.preset:
        return NamedSpec(found.preset, found.spec, sizes()[found.preset])
    form = weight_forms.config_form(found.config or {})
    return NamedSpec(found.name, found.spec, stored=form, estimate=found.estimate)
