"""A layer plan in words: a name for each kind of layer, and the plan with what repeats folded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from zoo.blocks import Layer
from zoo.model.decoder import Decoder
from zoo.swaps.rebuild import aliases


def labels(spec: Decoder) -> list[str]:
    """A short name for each distinct layer, in order of appearance: what sets it apart from the others."""
    kinds = list(dict.fromkeys(spec.layers))
    apart: list[list[str]] = []
    for aspect in ASPECTS:
        words = [aspect(layer) for layer in kinds]
        if len(set(words)) > 1 or len(kinds) == 1:
            apart.append(words)
        names = [", ".join(parts) for parts in zip(*apart, strict=True)]
        if len(set(names)) == len(kinds):
            return names
    return [f"kind {i + 1}" for i in range(len(kinds))]


def _window(layer: Layer) -> str:
    window = layer.cache_spec().window
    return f"window {window}" if window else "full"


ASPECTS: tuple[Callable[[Layer], str], ...] = (
    _window,
    lambda layer: " ".join(type(node).__name__ for node in layer.walk() if node.role == "rope"),
    lambda layer: aliases(layer.mixer)[0],
    lambda layer: type(layer.ffn.block).__name__,
    lambda layer: layer.attn.placement,
)


def fold(plan: Sequence[str]) -> str:
    """Run-length-encoded, and what repeats folded: 5 x (5 x [window 1024] + 1 x [full]) + 4 x [window 1024]"""
    return " + ".join(_groups([(len(list(run)), label) for label, run in groupby(plan)]))


def _groups(runs: list[tuple[int, str]]) -> Iterator[str]:
    """From the front, the group of runs that covers most by coming again and again; a lone run otherwise."""
    while runs:
        length, times = max(_repeats(runs), key=lambda found: (found[0] * found[1], -found[0]))
        inner = " + ".join(f"{n} x [{label}]" for n, label in runs[:length])
        yield f"{times} x ({inner})" if times > 1 else inner
        runs = runs[length * times :]


def _repeats(runs: list[tuple[int, str]]) -> Iterator[tuple[int, int]]:
    """(length, times) for every group of runs that the list begins with and that comes again at once."""
    yield 1, 1
    for length in range(2, len(runs) // 2 + 1):
        times = 1
        while runs[times * length : (times + 1) * length] == runs[:length]:
            times += 1
        if times > 1:
            yield length, times
