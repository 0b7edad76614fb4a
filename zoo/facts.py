"""Facts: the statements that a block makes about itself. Cards, comparisons, diagrams and filters make text of them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple


class Fact(NamedTuple):
    """One statement of a block about itself.

    `key` names the subject: a field's name, or "kind" for the block itself. `phrase` is a format string for the value,
    or for the members of a tuple value. Without a phrase, the text is the value with its `unit`. `noun` names the
    subject without its value: "score cap" for "scores capped at 50". A fact that another fact covers has an empty text.
    """

    key: str
    value: Any = True
    unit: str = ""
    phrase: str = ""
    noun: str = ""

    @property
    def values(self) -> tuple[Any, ...]:
        """The values that fill the phrase."""
        return self.value if isinstance(self.value, tuple) else (self.value,)

    @property
    def template(self) -> str:
        """The format string of the text."""
        return self.phrase or f"{{:,}} {self.unit}" if self.phrase or self.unit else "{}"

    def __str__(self) -> str:
        return self.template.format(*(each.describe() if _has_facts(each) else each for each in self.values))

    @property
    def name(self) -> str:
        """The subject in words, without numbers."""
        return self.noun or (self.key.replace("_", " ") if "{" in self.template else self.template)

    @property
    def structure(self) -> Hashable:
        """The fact without its numbers: equal for two blocks that differ only in sizes."""
        return (self.key, self.template, *(_structure(each) for each in self.values))


def _has_facts(value: object) -> bool:
    return hasattr(value, "facts")


def _structure(value: Any) -> Hashable:
    if _has_facts(value):
        return tuple(fact.structure for fact in value.facts())
    return None if isinstance(value, int | float) else value


def fact_of_field(name: str, value: Any) -> Fact:
    """Returns a fact about an optional field in use, for a block whose own facts do not mention that field."""
    noun = name.replace("_", " ")
    if value is None or value is False:
        return Fact(name, phrase=f"no {noun}")
    if _has_facts(value) and value.role == name:
        return Fact(name, value, noun=noun)
    if value is True or _has_facts(value):
        return Fact(name, phrase=noun)
    shown = "{:g}" if isinstance(value, float) else "{}"
    listed = ", ".join(map(_member, value)) if isinstance(value, tuple) else value
    return Fact(name, listed, phrase=f"{noun} {shown}", noun=noun)


def _member(value: Any) -> str:
    return value.describe() if _has_facts(value) else f"{value:g}" if isinstance(value, float) else str(value)
