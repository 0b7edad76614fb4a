"""Which models a command line means by the words it was given."""

from __future__ import annotations

from collections.abc import Iterable

from zoo.architectures import families
from zoo.catalog import resolve, sizes
from zoo.config import Size


def published(words: Iterable[str]) -> dict[str, Size]:
    """Preset -> size, in the order asked for: of a family all sizes, of a preset or hub id the one, of no words all.

    Raises UsageError for a word that is none of these.
    """
    chosen = sizes()
    return {preset: chosen[preset] for word in words or families() for preset in _presets(word)}


def representatives(words: Iterable[str]) -> dict[str, Size]:
    """One size a word, under the word's canonical name: of a family its smallest. Of no words, every family's."""
    chosen = sizes()
    labels = (_family(word) or resolve(word) for word in words or families())
    return {label: chosen[resolve(label)] for label in labels}


def _presets(word: str) -> Iterable[str]:
    family = _family(word)
    return families()[family].SIZES if family else [resolve(word)]


def _family(word: str) -> str | None:
    folded = word.lower().replace("_", "-")
    return folded if folded in families() else None
