"""Models named on a command line: presets, families, hub ids and folders with a config.json."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.analytic import weight_forms
from benchmarks.analytic.weight_forms import WeightForm
from weights.formats.untrusted import CONFIG_LIMIT, read_json
from zoo.architectures import families
from zoo.catalog import folded, from_hf, resolve, sizes
from zoo.cli.tables import Row
from zoo.errors import MalformedError, NotAvailable, UsageError
from zoo.hf.config import Size
from zoo.model.decoder import Decoder
from zoo.swaps.grammar import apply_swaps

CONFIG = "config.json"


@dataclass(frozen=True)
class NamedSpec:
    """A named spec with its published size (None: not published).

    `swap`: the swaps that were applied to the model of that name. `dropped`: the features that they removed. `stored`:
    the form of its weights, if a config.json states it.
    """

    name: str
    spec: Decoder
    size: Size | None = None
    swap: str | None = None
    dropped: str | None = None
    stored: WeightForm | None = None

    @property
    def released_form(self) -> WeightForm:
        """The form in which the model's weights are released. A swapped model keeps the form of the original model."""
        return self.stored or weight_forms.released_form(self.name)

    @property
    def label(self) -> str:
        """The name, starred where a swap has changed the model."""
        return self.name + ("*" if self.swap else "")


def about(model: NamedSpec, against: NamedSpec | None = None) -> Row:
    """Returns the first keys of every row about a model, or about a model and the model of its comparison."""
    hub = model.size.hub if model.size else None
    row = {"model": model.name, "hub": hub, "swap": model.swap, "dropped": model.dropped}
    return row | ({"against": against.label, "against_swap": against.swap} if against else {})


def chosen(
    names: Sequence[str], swaps: Sequence[str] = (), ignore_fields: Iterable[str] = (), smallest: bool = False
) -> list[NamedSpec]:
    """Returns the named models, in their order and without repeats; no names mean every family.

    A family means all its sizes or, with `smallest`, the smallest one under the family's name. With `swaps`, the
    swapped form of each model follows it. Raises UsageError for an unknown name, and for swaps without names.
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
        found |= {model.name: model for model in models}
    return [each for model in found.values() for each in ((model, swapped(model, swaps)) if swaps else (model,))]


representatives = partial(chosen, smallest=True)  # one model for each family


def swapped(model: NamedSpec, swaps: Sequence[str]) -> NamedSpec:
    """Returns the model, under its own name, with swaps (zoo.swaps.grammar) applied in turn."""
    spec, dropped = apply_swaps(model.spec, swaps)
    return NamedSpec(
        model.name, spec, swap="; ".join(swaps), dropped=", ".join(dropped) or None, stored=model.released_form
    )


def one(name: str, ignore_fields: Iterable[str] = ()) -> NamedSpec:
    """Returns the model of a preset, a hub id or a folder with a config.json. A family means its smallest preset.

    A folder's model has the folder's name; "./" distinguishes it from a preset.
    """
    try:
        preset = resolve(name)
        return NamedSpec(preset, sizes()[preset].spec, sizes()[preset])
    except UsageError:
        folder = Path(name).parent if Path(name).name == CONFIG else Path(name)
        if not folder.is_dir() and "/" in name:
            raise NotAvailable(f"{name} is neither a folder here nor the hub id of a preset") from None
        if not folder.is_dir():
            raise
    if not (folder / CONFIG).is_file():
        raise NotAvailable(f"{folder}: there is no {CONFIG} in this folder")
    config, name = read_json(folder / CONFIG, CONFIG_LIMIT), folder.resolve().name
    try:
        spec = from_hf(config, ignore_fields)
        return NamedSpec(f"./{name}" if name in sizes() else name, spec, stored=weight_forms.config_form(config))
    except MalformedError as error:
        raise MalformedError(f"{folder}/{error}") from error
