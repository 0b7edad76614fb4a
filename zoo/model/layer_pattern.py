"""Describes a model's layers as text: a name for each kind of layer, and the list of layers with repeats folded."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from zoo.blocks.layer import Layer
from zoo.registry import Spec


def labels(layers: Iterable[Layer]) -> list[str]:
    """Returns a short name for each distinct layer, in order of appearance. A name consists of the descriptions in
    which the layers differ. Of two on the same subject, only the more specific is used: "RoPE 10k" replaces "RoPE"."""
    kinds = list(dict.fromkeys(layers))
    names: list[dict[str, str]] = [{} for _ in kinds]  # subject -> words
    for subject, aspect in ASPECTS:
        longer = [_with(name, subject, aspect(layer)) for name, layer in zip(names, kinds, strict=True)]
        if _distinct(longer) > _distinct(names) or len(kinds) == 1:
            names = longer
        if _distinct(names) == len(kinds):
            return [", ".join(name.values()) for name in names]
    return [f"kind {i + 1}" for i in range(len(kinds))]


def _with(name: dict[str, str], subject: str, words: str) -> dict[str, str]:
    return {key: said for key, said in name.items() if key != subject} | {subject: words} if words else name


def _distinct(names: list[dict[str, str]]) -> int:
    return len({tuple(name.values()) for name in names})


def _keeps_tokens(layer: Layer) -> bool:
    return bool(layer.cache_spec().per_token or layer.takes())


def _mixer(layer: Layer) -> str:
    return layer.mixer.names()[0] if layer.mixer else "no mixer"


def _ropes(layer: Layer) -> list[Spec]:
    return [node for node in layer.walk() if node.role == "rope"]


def _size(words: str, block: object, field: str) -> str:
    """Returns a block's field in words, such as "heads 64 wide", or "" if the block has no such field."""
    size = getattr(block, field, None)
    return words.format(size) if size else ""


def aspects(layer: Layer) -> tuple[str, ...]:
    """Returns the descriptions by which `labels` tells layers apart, one for each entry of ASPECTS. Layers with equal
    descriptions get the same name."""
    return tuple(aspect(layer) for _, aspect in ASPECTS)


# (subject, function that describes a layer). For a mixer that stores only a state, its name replaces the reach.
ASPECTS: tuple[tuple[str, Callable[[Layer], str]], ...] = (
    ("reach", lambda layer: layer.cache_spec().describe() if _keeps_tokens(layer) else _mixer(layer)),
    ("rope", lambda layer: " ".join(type(rope).__name__ for rope in _ropes(layer))),
    ("mixer", lambda layer: _mixer(layer) if _keeps_tokens(layer) else ""),
    ("feed-forward", lambda layer: type(layer.ffn.block).__name__ if layer.ffn else "no feed-forward"),
    ("router", lambda layer: "hash" if layer.reads_tokens else ""),
    ("placement of attn", lambda layer: layer.attn.placement if layer.attn else ""),
    ("placement of ffn", lambda layer: layer.ffn.placement if layer.ffn else ""),
    ("takes", lambda layer: f"takes {', '.join(layer.takes().values())}" if layer.takes() else ""),
    ("rope", lambda layer: " ".join(rope.describe() for rope in _ropes(layer))),
    ("width of heads", lambda layer: _size("heads {} wide", layer.mixer, "head_dim")),
    ("width of feed-forward", lambda layer: _size("feed-forward {} wide", layer.feed_forward, "hidden")),
)


def fold(names: Sequence[str]) -> str:
    """Returns a list of layer names in short form: run-length encoded, with repeated groups of runs folded:
    5 x (5 x [window 1024] + 1 x [full]) + 4 x [window 1024]"""
    runs, groups = [(len(list(run)), name) for name, run in groupby(names)], []
    while runs:  # take the group at the front whose repeats cover most runs
        length, times = max(_repeats(runs), key=lambda found: (found[0] * found[1], -found[0]))
        inner = " + ".join(f"{count} x [{name}]" for count, name in runs[:length])
        groups.append(f"{times} x ({inner})" if times > 1 else inner)
        runs = runs[length * times :]
    return " + ".join(groups)


def _repeats(runs: list[tuple[int, str]]) -> Iterator[tuple[int, int]]:
    """Yields (length, times) for each group of runs at the front that repeats at once, and (1, 1) for the first run."""
    yield 1, 1
    for length in range(2, len(runs) // 2 + 1):
        times = 1
        while runs[times * length : (times + 1) * length] == runs[:length]:
            times += 1
        if times > 1:
            yield length, times
