"""Which models a command line means by the words it was given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from weights.files import CONFIG_LIMIT, read_json
from zoo.architectures import families
from zoo.catalog import from_hf, resolve, sizes
from zoo.config import Size
from zoo.decoder import Decoder
from zoo.errors import MalformedError, NotAvailable, UsageError

CONFIG = "config.json"


@dataclass(frozen=True)
class Model:
    """A row of a table: a spec under a name, and the published size that it is, None for one from a folder."""

    name: str
    spec: Decoder
    size: Size | None = None


def chosen(words: Iterable[str], ignore_fields: Iterable[str] = ()) -> list[Model]:
    """The models in the order asked for, each once: of a family all sizes; of a preset, hub id or folder the one; of no
    words every published size. Raises UsageError for a word that is none of these."""
    models = (model for word in words or families() for model in _models(word, ignore_fields))
    return list({model.name: model for model in models}.values())


def representatives(words: Iterable[str], ignore_fields: Iterable[str] = ()) -> list[Model]:
    """One model a word, under the word's canonical name: of a family its smallest. Of no words, every family's."""
    models = (_smallest(word) or one(word, ignore_fields) for word in words or families())
    return list({model.name: model for model in models}.values())


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
    """The model that a folder's config.json describes, under the folder's name."""
    path = folder / CONFIG
    if not path.is_file():
        raise NotAvailable(f"{folder}: there is no {CONFIG} in this folder")
    config = read_json(path, CONFIG_LIMIT)
    try:
        return Model(folder.resolve().name, from_hf(config, ignore_fields))
    except MalformedError as error:
        raise MalformedError(f"{folder}/{error}") from error
