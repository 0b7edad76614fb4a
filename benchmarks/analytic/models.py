"""The models that a command line names: presets, families, hub ids and folders with a config.json."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weights.formats.json_limits import CONFIG_LIMIT, read_json
from zoo.architectures import families
from zoo.catalog import from_hf, resolve, sizes
from zoo.errors import MalformedError, NotAvailable, UsageError
from zoo.hf.config import Size
from zoo.model.decoder import Decoder
from zoo.swaps.grammar import apply_swaps

CONFIG = "config.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A named spec, and the published size that it is (None: it is not published).

    `swap`: the swaps that were applied to the model of that name; `dropped`: the features that they removed.
    """

    name: str
    spec: Decoder
    size: Size | None = None
    swap: str | None = None
    dropped: str | None = None

    @property
    def label(self) -> str:
        """The name, starred where a swap has changed the model."""
        return self.name + ("*" if self.swap else "")


def about(model: Model) -> Row:
    """The keys that begin every row about a model."""
    hub = model.size.hub if model.size else None
    return {"model": model.name, "hub": hub, "swap": model.swap, "dropped": model.dropped}


def chosen(names: Sequence[str], swaps: Sequence[str] = (), ignore_fields: Iterable[str] = ()) -> list[Model]:
    """The named models, in their order and without repeats: a family means all its sizes, no names mean every published
    size. With `swaps`, each model is followed by its swapped form.

    Raises UsageError for an unknown name, and for swaps without names.
    """
    sizes_of = {family: [_preset(name) for name in module.SIZES] for family, module in families().items()}
    return _chosen(sizes_of, names, swaps, ignore_fields)


def representatives(names: Sequence[str], swaps: Sequence[str] = (), ignore_fields: Iterable[str] = ()) -> list[Model]:
    """As `chosen`, but a family means its smallest size, under the family's name."""
    smallest = {family: [replace(_preset(resolve(family)), name=family)] for family in families()}
    return _chosen(smallest, names, swaps, ignore_fields)


def _chosen(
    by_family: Mapping[str, Sequence[Model]], names: Sequence[str], swaps: Sequence[str], ignore_fields: Iterable[str]
) -> list[Model]:
    if swaps and not names:
        raise UsageError("--swap changes the models that are named: name one, as in qwen3-8b --swap 'GQA(window=4096)'")
    found: dict[str, Model] = {}
    for name in names or by_family:
        models = by_family.get(name.lower().replace("_", "-")) or [one(name, ignore_fields)]
        found |= {model.name: model for model in models}
    return [each for model in found.values() for each in ((model, swapped(model, swaps)) if swaps else (model,))]


def swapped(model: Model, swaps: Sequence[str]) -> Model:
    """The model with swaps (zoo.swaps.grammar) applied in turn, under its own name."""
    spec, dropped = apply_swaps(model.spec, swaps)
    return Model(model.name, spec, swap="; ".join(swaps), dropped=", ".join(dropped) or None)


def one(name: str, ignore_fields: Iterable[str] = ()) -> Model:
    """The model of a preset, a hub id or a folder with a config.json; of a family the smallest preset."""
    try:
        return _preset(resolve(name))
    except UsageError:
        folder = Path(name).parent if Path(name).name == CONFIG else Path(name)
        if folder.is_dir():
            return _in_folder(folder, ignore_fields)
        if "/" in name:
            raise NotAvailable(f"{name} is neither a folder here nor the hub id of a preset") from None
        raise


def _preset(name: str) -> Model:
    return Model(name, sizes()[name].spec, sizes()[name])


def _in_folder(folder: Path, ignore_fields: Iterable[str]) -> Model:
    """The model that a folder's config.json describes, under the folder's name; "./" keeps it apart from a preset."""
    path = folder / CONFIG
    if not path.is_file():
        raise NotAvailable(f"{folder}: there is no {CONFIG} in this folder")
    config, name = read_json(path, CONFIG_LIMIT), folder.resolve().name
    try:
        return Model(f"./{name}" if name in sizes() else name, from_hf(config, ignore_fields))
    except MalformedError as error:
        raise MalformedError(f"{folder}/{error}") from error
