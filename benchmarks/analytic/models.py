"""Which models a command line means by the words it was given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from weights.formats.json_limits import CONFIG_LIMIT, read_json
from zoo.architectures import families
from zoo.catalog import from_hf, resolve, sizes
from zoo.errors import MalformedError, NotAvailable, UsageError
from zoo.hf.config import Size
from zoo.model.decoder import Decoder
from zoo.swaps.grammar import apply_swap

CONFIG = "config.json"


@dataclass(frozen=True)
class Model:
    """A row of a table: a spec under a name, and the published size that it is, None if it is none.

    `swap`: the swaps that made it of the model of that name, and `dropped` the features that they lost, in words.
    """

    name: str
    spec: Decoder
    size: Size | None = None
    swap: str | None = None
    dropped: str | None = None

    @property
    def label(self) -> str:
        """The name, starred where a swap has changed it."""
        return self.name + ("*" if self.swap else "")


def chosen(words: Sequence[str], swaps: Sequence[str] = (), ignore_fields: Iterable[str] = ()) -> list[Model]:
    """The models in the order asked for, each once: of a family all sizes; of a preset, hub id or folder the one; of no
    words every published size. With `swaps`, each is followed by its swapped form. Raises UsageError for a word that
    means nothing, and for swaps without words."""
    models = (model for word in words or families() for model in _models(word, ignore_fields))
    return _beside(models, words, swaps)


def representatives(words: Sequence[str], swaps: Sequence[str] = (), ignore_fields: Iterable[str] = ()) -> list[Model]:
    """One model a word, under the word's canonical name: of a family its smallest. Of no words, every family's."""
    models = (_smallest(word) or one(word, ignore_fields) for word in words or families())
    return _beside(models, words, swaps)


def swapped(model: Model, swaps: Sequence[str]) -> Model:
    """The model with swaps (zoo.swaps.grammar) applied in turn, under its own name."""
    spec, dropped = model.spec, dict[str, None]()
    for swap in swaps:
        spec, lost = apply_swap(spec, swap)
        dropped.update(dict.fromkeys(lost))
    return Model(model.name, spec, swap="; ".join(swaps), dropped=", ".join(dropped) or None)


def _beside(models: Iterable[Model], words: Sequence[str], swaps: Sequence[str]) -> list[Model]:
    """Each model once, followed by its swapped form where there are swaps."""
    if swaps and not words:
        raise UsageError("--swap changes the models that are named: name one, as in qwen3-8b --swap 'GQA(window=4096)'")
    once = {model.name: model for model in models}.values()
    return [each for model in once for each in ((model, swapped(model, swaps)) if swaps else (model,))]


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


def _models(word: str, ignore_fields: Iterable[str]) -> Iterator[Model]:
    if family := _family(word):
        yield from (_preset(name) for name in families()[family].SIZES)
    else:
        yield one(word, ignore_fields)


def _preset(name: str) -> Model:
    return Model(name, sizes()[name].spec, sizes()[name])


def _smallest(word: str) -> Model | None:
    family = _family(word)
    size = sizes()[resolve(family)] if family else None
    return Model(family, size.spec, size) if family and size else None


def _family(word: str) -> str | None:
    folded = word.lower().replace("_", "-")
    return folded if folded in families() else None


def _in_folder(folder: Path, ignore_fields: Iterable[str]) -> Model:
    """The model that a folder's config.json describes, under the folder's name, which a preset's is told apart from."""
    path = folder / CONFIG
    if not path.is_file():
        raise NotAvailable(f"{folder}: there is no {CONFIG} in this folder")
    config, name = read_json(path, CONFIG_LIMIT), folder.resolve().name
    try:
        return Model(f"./{name}" if name in sizes() else name, from_hf(config, ignore_fields))
    except MalformedError as error:
        raise MalformedError(f"{folder}/{error}") from error
