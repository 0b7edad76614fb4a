"""The diagrams of a page: one for each model, one style sheet for all, and where any two of them differ."""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks.analytic.models import Model
from zoo.diagram import svg
from zoo.model.decoder import Decoder

DIFFERS = "differs"  # the class that a diagram drawn against another puts on what that one does not have
SHEET = re.compile(r"<style[^>]*>(.*?)</style>", re.DOTALL)
TAG = re.compile(r"<[a-z][^>]*>")  # an element's begin; the drawing escapes every > that stands in a value


def drawing(model: Model, against: Decoder | None = None) -> str:
    """The diagram of a model, without its style sheet."""
    return bare(svg(model.spec, model.name, against=against))


def bare(drawn: str) -> str:
    """A drawing without its style sheet."""
    return SHEET.sub("", drawn)


def style(model: Model) -> str:
    """The style sheet, which all diagrams share."""
    return "".join(SHEET.findall(svg(model.spec, model.name)))


def marks(model: Model, others: Sequence[Model]) -> list[list[int]]:
    """For each of the others, which elements of the model's diagram it does not have, counted in the order in which
    the document holds them, its root left out."""
    return [[] if other.spec is model.spec else _marked(drawing(model, other.spec)) for other in others]


def _marked(text: str) -> list[int]:
    _, *inside = TAG.findall(text)
    return [i for i, tag in enumerate(inside) if re.search(rf'class="[^"]*\b{DIFFERS}\b', tag)]
