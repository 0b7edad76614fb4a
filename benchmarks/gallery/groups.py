"""The models of a page by architecture, and the one of each that stands for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.analytic.models import Model
from zoo.architectures import families

TYPICAL = 8e9  # parameters: the size nearest to this stands for its architecture


@dataclass(frozen=True)
class Group:
    """An architecture, what its file says of it, and those of its models that are on the page."""

    name: str
    title: str
    source: str
    new: str
    models: tuple[Model, ...]

    @property
    def typical(self) -> Model:
        """The size that stands for all: the one nearest to 8 billion parameters, of two the later."""

        def apart(model: Model) -> float:
            ratio = model.spec.params() / TYPICAL
            return max(ratio, 1 / ratio)

        return min(reversed(self.models), key=apart)


def groups(models: Sequence[Model]) -> list[Group]:
    """Models by architecture, in the order of the first of each; one that is no preset stands alone."""
    found: dict[str, list[Model]] = {}
    for model in models:
        family = next((name for name, module in families().items() if model.name in module.SIZES), model.name)
        found.setdefault(family, []).append(model)
    return [Group(name, *_told(name), tuple(each)) for name, each in found.items()]


def typical(models: Sequence[Model]) -> list[Model]:
    """One model of each architecture."""
    return [group.typical for group in groups(models)]


def _told(name: str) -> tuple[str, str, str]:
    """The docstring of an architecture's file in three: its name, the source in brackets, and what is new in it."""
    if name not in families():
        return name, "", "Read from a config.json."
    told = re.sub(r"\s+", " ", families()[name].__doc__ or "").strip()
    match = re.match(r"(.+?) \((.+?)\)[,.:]? *(.*)", told)
    title, source, new = match.groups() if match else (name, "", told)
    new = re.sub(r"New here: (.)", lambda first: first[1].upper(), new)
    return title, source, new[:1].upper() + new[1:]
