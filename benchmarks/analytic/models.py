"""Which models the words of a command line mean."""

from __future__ import annotations

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
from zoo.swaps.grammar import apply_swap

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


def chosen(words: Sequence[str], swaps: Sequence[str] = (), ignore_fields: Iterable[str] = ()) -> list[Model]:
    """The models that the words name, in their order and without repeats: a family means all its sizes, no words mean
    every published size. With `swaps`, each model is followed by its swapped form.

    Raises UsageError for an unknown word, and for swaps without words.
    """
    sizes_of = {family: [_preset(name) for name in module.SIZES] for family, module in families().items()}
    return _chosen(sizes_of, words, swaps, ignore_fields)


def representatives(words: Sequence[str], swaps: Sequence[str] = (), ignore_fields: Iterable[str] = ()) -> list[Model]:
    """As `chosen`, but a family means its smallest size, under the family's name."""
    smallest = {family: [replace(_preset(resolve(family)), name=family)] for family in families()}
    return _chosen(smallest, words, swaps, ignore_fields)


def _chosen(
    by_family: Mapping[str, Sequence[Model]], words: Sequence[str], swaps: Sequence[str], ignore_fields: Iterable[str]
) -> list[Model]:
    if swaps and not words:
        raise UsageError("--swap changes the models that are named: name one, as in qwen3-8b --swap 'GQA(window=4096)'")
    found: dict[str, Model] = {}
    for word in words or by_family:
        models = by_family.get(word.lower().replace("_", "-")) or [one(word, ignore_fields)]
        found |= {model.name: model for model in models if model.name not in found}
    return [each for model in found.values() for each in ((model, swapped(model, swaps)) if swaps else (model,))]


def swapped(model: Model, swaps: Sequence[str]) -> Model:
    """The model with swaps (zoo.swaps.grammar) applied in turn, under its own name."""
    spec, dropped = model.spec, dict[str, None]()
    for swap in swaps:
        spec, features = apply_swap(spec, swap)
        dropped.update(dict.fromkeys(features))
    return Model(model.name, spec, swap="; ".join(swaps), dropped=", ".join(dropped) or None)


def one(word: str, ignore_fields: Iterable[str] = ()) -> Model:
    """The model of a preset, a hub id or a folder with a config.json; of a family the smallest preset."""
    try:
        return _preset(resolve(word))
    except UsageError:
        folder = Path(word).parent if Path(word).name == CONFIG else Path(word)
        if folder.is_dir():
            return _in_folder(folder, ignore_fields)
        if "/" in word:
            raise NotAvailable(f"{word} is neither a folder here nor the hub id of a preset") from None
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
