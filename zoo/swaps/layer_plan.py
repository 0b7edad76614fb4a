"""A layer pattern at another depth: leading layers, then a repeated period."""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import TypeVar

T = TypeVar("T")


def at_depth(layers: Sequence[T], depth: int) -> tuple[T, ...]:
    """Returns `depth` layers in the pattern of `layers`: its leading layers in proportion (at least one), then its
    period repeated. Every distinct kind of layer is present, as far as `depth` allows.

    61 layers, the first 3 dense -> 6 layers, the first dense; 26 layers, each sixth full -> 6 layers, the last full.
    """
    lead, period = leading_and_period(layers)
    leading, repeated = layers[:lead], layers[lead : lead + period]
    few = max(len(set(leading)), round(lead * depth / len(layers))) if lead else 0
    kept = min(few, lead, max(depth - len(set(repeated)), int(depth > 1)))
    body = depth - kept
    is_whole = lead > 0 and (len(layers) - lead) % period == 0  # the last layer ends a period, also at the new depth
    start = -body % period if is_whole else 0
    rest = _each_kind(repeated, body) if body < period else list(islice(cycle(repeated), start, start + body))
    return (*_each_kind(leading, kept), *rest)


def leading_and_period(layers: Sequence[T]) -> tuple[int, int]:
    """Returns (leading layers, period), in layers: the shortest description of the list, and among equally short ones
    that with the shortest period."""
    found = []
    for period in range(1, len(layers) + 1):
        repeats = [layers[i] == layers[i + period] for i in range(len(layers) - period)]
        lead = max((i + 1 for i, same in enumerate(repeats) if not same), default=0)
        if lead + period <= len(layers):
            found.append((lead + period, period))
    length, period = min(found)
    return length - period, period


def _each_kind(layers: Sequence[T], number: int) -> list[T]:
    """Returns `number` of `layers` in their order. The first layer of each kind takes precedence over the others."""
    firsts = [i for i, layer in enumerate(layers) if layer not in layers[:i]]
    others = [i for i in range(len(layers)) if i not in firsts]
    return [layers[i] for i in sorted([*firsts, *others][:number])]
