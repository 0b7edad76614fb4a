"""Solves for the feed-forward widths with which a model meets a budget, such as a number of parameters."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

from zoo.blocks.feed_forward import FeedForward
from zoo.blocks.layer import Layer
from zoo.errors import SpecError
from zoo.model.decoder import Decoder

T = TypeVar("T")
TOLERANCE = 0.01
Cost = Callable[[Decoder], int]
STEPS = 64  # steps of the search for the common factor, per unit of the widest width


def solve_widths(spec: Decoder, wanted: int, cost: Cost, mixed: bool = False) -> Decoder:
    """Returns `spec` with every feed-forward width multiplied by one factor, so that its cost is nearest to `wanted`.

    Different widths keep their ratio up to rounding. If the cost misses `wanted` by more than TOLERANCE (relative),
    `mixed` makes the first layers one step of the search wider than the others. Raises SpecError if the spec has no
    feed-forward width.
    """

    def gap(each: Decoder) -> int:
        return abs(cost(each) - wanted)

    low, high = _around(spec, wanted, cost)
    nearest = min(low, high, key=gap)
    if not mixed or gap(nearest) <= TOLERANCE * wanted:
        return nearest
    return min((replace(low, layers=high.layers[:n] + low.layers[n:]) for n in range(len(low.layers) + 1)), key=gap)


def with_widths(spec: Decoder, factor: float) -> Decoder:
    """Returns `spec` with every feed-forward width multiplied by `factor` and rounded: at least 1, and the next larger
    width if a block does not allow this one."""
    narrowest = min((layer.dense_width for layer in spec.layers if layer.dense_width), default=1)

    def at(width: int) -> Decoder:
        layers = {layer: _scaled_layer(layer, factor, narrowest, width) for layer in dict.fromkeys(spec.layers)}
        return replace(spec, layers=tuple(layers[layer] for layer in spec.layers))

    return _first_allowed(at, round(narrowest * factor), narrowest)


def _first_allowed(make: Callable[[int], T], width: int, known: int) -> T:
    """Returns `make(width)` or, if that raises SpecError, the result for the next larger width that is allowed. Tries
    `known` consecutive widths, where `known` itself is an allowed width. If the allowed widths are the multiples of a
    number, one of the tried widths is among them."""
    first = max(1, width)
    for each in range(first, first + known):
        with suppress(SpecError):
            return make(each)
    return make(first)  # raises the error of the first width


def _scaled_layer(layer: Layer, factor: float, narrowest: int, width: int) -> Layer:
    """Returns a layer with its feed-forward widths multiplied by `factor`. If its dense width is a multiple of the
    `narrowest` one, it becomes the same multiple of `width`, the scaled narrowest width."""
    dense = layer.dense_width
    if dense and dense % narrowest == 0:
        return layer.with_width(dense // narrowest * width)
    return _scaled(layer, factor)


def _scaled(part: Any, factor: float) -> Any:
    """Returns a part with its feed-forward widths multiplied by `factor`."""
    if isinstance(part, FeedForward):
        return _first_allowed(part.with_width, round(part.width * factor), part.width)
    return part.map(lambda child: _scaled(child, factor))


def _around(spec: Decoder, wanted: int, cost: Cost) -> tuple[Decoder, Decoder]:
    """Returns the two specs whose costs enclose `wanted`: the widest spec that costs at most `wanted` (or the narrowest
    possible spec), and the next wider spec."""
    widest = max((part.width for part in spec.walk() if isinstance(part, FeedForward)), default=0)
    if not widest:
        raise SpecError("no feed-forward width here that could meet a budget")

    @cache
    def at(steps: int) -> tuple[Decoder, int]:
        made = with_widths(spec, steps / STEPS / widest)
        return made, cost(made)

    one, two = at(widest * STEPS)[1], at(2 * widest * STEPS)[1]  # widths that every block allows
    if one == two:
        raise SpecError("wider feed-forwards cost no more here: no width could meet a budget")
    guess = max(0, round((widest + (wanted - one) / (two - one) * widest) * STEPS))  # costs are linear in the widths
    reach = 2 * STEPS
    low, high = max(0, guess - reach), guess + reach
    while low and at(low)[1] > wanted:
        low = max(0, low - reach)
    while at(high)[1] <= wanted:
        high += reach
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle)[1] <= wanted else (low, middle)
    return at(low)[0], at(high)[0]
