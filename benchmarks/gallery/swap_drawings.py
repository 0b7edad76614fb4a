"""Diagrams of swapped models, as parts that the page stacks: most parts of a swapped model are those of the original.

One change is drawn at a time; the page puts one of attention and one of the feed-forward together. It marks the texts
that the original does not have in the same place.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from benchmarks.analytic.models import NamedSpec
from benchmarks.gallery.swap_grid import RELEASED, single_choices, swapped
from benchmarks.gallery.timeline import title_of
from zoo.diagram import fragments

Intern = Callable[[str], int]  # a text -> its index among those that all drawings share
LAYOUT: Literal["narrow"] = "narrow"  # two stand side by side, or on a phone one above the other


def swap_drawings(model: NamedSpec, intern: Intern) -> dict[str, Any]:
    """`released`: the parts of the model's own drawing from the top, each [key, index of its SVG, height]; `changed`:
    for each axis and the label of each valid choice the parts of the swapped model's."""
    changed: dict[str, dict[str, list[Any]]] = {}
    for axis, choices in single_choices(model.spec).items():
        specs = {choice.label: swapped(model.spec, choice) for choice in choices if choice is not RELEASED}
        parts = {label: _parts(replace(model, spec=spec), intern) for label, spec in specs.items() if spec}
        changed[axis] = parts
    return {"released": _parts(model, intern), "changed": changed}


def _parts(model: NamedSpec, intern: Intern) -> list[Any]:
    drawn = fragments(model.spec, title_of(model), layout=LAYOUT)
    return [[part.key, intern(part.svg), part.height] for part in drawn]
