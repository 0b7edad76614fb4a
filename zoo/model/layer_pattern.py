"""A model's layer list as text: a name for each kind of layer, and the list with repeats folded."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from zoo.blocks.layer import Layer


def labels(layers: Iterable[Layer]) -> list[str]:
    """Returns a short name for each distinct layer, in order of appearance, made of the aspects that differ."""
    kinds = list(dict.fromkeys(layers))
    names: list[tuple[str, ...]] = [()] * len(kinds)
    for aspect in ASPECTS:
        longer = [_with(name, aspect(layer)) for name, layer in zip(names, kinds, strict=True)]
        if len(set(longer)) > len(set(names)) or len(kinds) == 1:
            names = longer
        if len(set(names)) == len(kinds):
            return [", ".join(name) for name in names]
    return [f"kind {i + 1}" for i in range(len(kinds))]


def _with(name: tuple[str, ...], part: str) -> tuple[str, ...]:
    """Returns a name with one more part, which replaces its own prefix: RoPE 10k replaces RoPE."""
    return (*(each for each in name if not f"{part} ".startswith(f"{each} ")), part) if part else name


def _mixer(layer: Layer) -> str:
    return layer.mixer.names()[0] if layer.mixer else "no mixer"


def _reach(layer: Layer) -> str:
    """Returns the reach of the layer's tokens in words, or the mixer's name if it keeps only a state."""
    cache = layer.cache_spec()
    return cache.describe() if cache.per_token or layer.takes() else _mixer(layer)


def _size(words: str, block: object, field: str) -> str:
    """Returns a size of a block in words, or "" if it has no such field."""
    size = getattr(block, field, None)
    return words.format(size) if size else ""


def aspects(layer: Layer) -> tuple[str, ...]:
    """Returns the aspects by which `labels` distinguishes layers. In a given list, equal aspects give equal labels."""
    return tuple(aspect(layer) for aspect in ASPECTS)


ASPECTS: tuple[Callable[[Layer], str], ...] = (
    _reach,
    lambda layer: " ".join(type(node).__name__ for node in layer.walk() if node.role == "rope"),
    _mixer,
    lambda layer: type(layer.ffn.block).__name__ if layer.ffn else "no feed-forward",
    lambda layer: "hash" if layer.reads_tokens else "",
    lambda layer: layer.attn.placement if layer.attn else "",
    lambda layer: layer.ffn.placement if layer.ffn else "",
    lambda layer: f"takes {', '.join(layer.takes().values())}" if layer.takes() else "",
    lambda layer: " ".join(node.describe() for node in layer.walk() if node.role == "rope"),
    lambda layer: _size("heads {} wide", layer.mixer, "head_dim"),
    lambda layer: _size("feed-forward {} wide", layer.ffn.block, "hidden") if layer.ffn else "",
)


def fold(names: Sequence[str]) -> str:
    """Returns the layers' names, run-length encoded, with repeated groups of runs folded:
    5 x (5 x [window 1024] + 1 x [full]) + 4 x [window 1024]"""
    runs, groups = [(len(list(run)), name) for name, run in groupby(names)], []
    while runs:  # from the front, the group whose repeats cover most runs
        length, times = max(_repeats(runs), key=lambda found: (found[0] * found[1], -found[0]))
        inner = " + ".join(f"{count} x [{name}]" for count, name in runs[:length])
        groups.append(f"{times} x ({inner})" if times > 1 else inner)
        runs = runs[length * times :]
    return " + ".join(groups)


def _repeats(runs: list[tuple[int, str]]) -> Iterator[tuple[int, int]]:
    """Yields (length, times) for every group of runs at the front that repeats immediately, and for the first run."""
    yield 1, 1
    for length in range(2, len(runs) // 2 + 1):
        times = 1
        while runs[times * length : (times + 1) * length] == runs[:length]:
            times += 1
        if times > 1:
            yield length, times
