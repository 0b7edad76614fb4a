"""Diagrams of swapped models, as parts that the page stacks.

A choice of attention (keys and values, window, positions) does not change the feed-forward, and a choice of
feed-forward does not change attention. So the branches of the two are drawn separately.

Choices are grouped: in a group, such as all numbers of KV heads, the same layers are equal and have the same names.
Equal layers are found once for each group.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

from benchmarks.gallery.swap_grid import Choice, both, single_choices, swapped
from zoo.blocks import Layer
from zoo.blocks.layer import Placement
from zoo.blocks.norms import LayerScale
from zoo.diagram.blow_ups import LAYOUTS
from zoo.diagram.canvas import Fragment
from zoo.diagram.figure import (
    STRIP,
    STRIP_ABOVE,
    STRIP_BELOW,
    Shown,
    after_layers,
    before_layers,
    branch_fragment,
    folded,
    fragments,
)
from zoo.diagram.looks import Look, look
from zoo.diagram.rows import Rows
from zoo.model.decoder import Decoder
from zoo.model.layer_pattern import aspects, labels

NARROW = LAYOUTS["narrow"]  # two diagrams stand side by side or, on a phone, one above the other
STRIP_PLACE = {  # place of the strip of layers, which the page draws: its box and margins, in a drawing of this width
    "page": NARROW.width,
    "left": NARROW.left,
    "width": NARROW.panel_end - NARROW.left,
    "height": STRIP,
    "above": STRIP_ABOVE,
    "below": STRIP_BELOW,
}
SHOWN: tuple[Shown, ...] = ("here", "above", "below")

Intern = Callable[[Fragment], int]  # a part -> its index among the parts that all drawings share
Drawn = Callable[[Callable[[Rows], None]], list[int]]  # a function that draws parts -> their indices
Json = dict[str, Any]
Branches = Sequence[Placement | None]  # branches of all layers, in one role
Cell = tuple[int | None, ...]  # for each layer, the index of its branch (None: no branch)
Rest = tuple[Placement | None, LayerScale | None]  # rest of a layer: its per-layer inputs, and the scale of its output
Kind = tuple[int | None, int | None, int]  # indices of a layer's attention, feed-forward and Rest


class Frame(NamedTuple):
    """The frame that is drawn for a kind of layer. `top`: the index of the part at its top. `look`: its look.

    `attn` and `ffn` are (index of the branch, index of its part in SHOWN). `rest` is the index of a Rest.
    """

    top: int
    look: Look
    attn: tuple[int, int] | None
    ffn: tuple[int, int] | None
    rest: int


def swap_drawings(spec: Decoder, intern: Intern) -> Json:
    """Returns the data from which the page draws a model and all its swaps. Drawn parts are indices from `intern`.

    `before`, `after`: the parts before and after the layers.

    `attention`: an entry for each choice of keys and values. `feed_forward`: an entry for each number of experts and of
    experts per token. An entry has its `group` and, for each distinct branch, three parts: the branch in full, a note
    that it is drawn above, and a note that it is drawn below. The entry of an invalid model is None.

    `rests`: for each Rest, the parts of a layer after the two branches, as [role, part].

    `frames`: kinds of layers, as `Frame`. `attn` and `ffn` are [branch, part], and `rest` is an index of `rests`.

    `structures`: by group of attention, group of feed-forward, window and positions. `kinds`: indices of frames.
    `runs`: [number of layers, index in `kinds`]. `pattern`: the part below the strip. The structure of an invalid model
    is None.
    """

    def drawn(draw: Callable[[Rows], None]) -> list[int]:
        return list(map(intern, fragments(spec, draw, "narrow")))

    choices = single_choices(spec)
    attention = _Role(spec, "attn", _attention(spec, choices))
    feed_forward = _Role(spec, "ffn", _feed_forward(spec, choices))
    structures = _Structures(spec, drawn, attention, feed_forward)
    table = [
        [_rows(structures.of(i, j), len(choices["positions"])) for j in range(len(feed_forward.groups))]
        for i in range(len(attention.groups))
    ]
    return {
        "before": drawn(before_layers),
        "after": drawn(after_layers),
        "attention": attention.parts(intern),
        "feed_forward": _rows(feed_forward.parts(intern), len(choices["k"])),
        "rests": structures.rest_parts(intern),
        "frames": [frame._asdict() for frame in structures.frames],
        "structures": table,
    }


def _rows(cells: Sequence[Any], columns: int) -> list[Sequence[Any]]:
    return [cells[i : i + columns] for i in range(0, len(cells), columns)]


class _Variant(NamedTuple):
    """The attention (or feed-forward) branches that occur with one choice, each once, and the layers that have them.

    A cell holds, for each layer of one model, the index of its branch. Attention has one cell for each combination of
    window and positions, the feed-forward a single cell. The cell of an invalid model is None.
    """

    branches: tuple[Placement, ...]
    cells: tuple[Cell | None, ...]


def _variant(cells: Sequence[Branches | None]) -> _Variant:
    distinct = dict.fromkeys(branch for branches in cells if branches for branch in branches if branch)
    index: dict[Placement | None, int | None] = {branch: i for i, branch in enumerate(distinct)} | {None: None}
    indexed = (tuple(index[branch] for branch in branches) if branches else None for branches in cells)
    return _Variant(tuple(distinct), tuple(indexed))


def _attention(spec: Decoder, choices: dict[str, list[Choice]]) -> list[_Variant]:
    """Returns the attention variant of each choice of keys and values.

    A choice that only changes fields of blocks is applied last, to one layer of each kind. That takes a tenth of the
    work.
    """

    def with_others(spec: Decoder) -> list[Decoder | None]:
        changed = (swapped(spec, window) for window in choices["window"])
        return [each and swapped(each, positions) for each in changed for positions in choices["positions"]]

    specs = with_others(spec)
    distinct = tuple(dict.fromkeys(layer for each in specs if each for layer in each.layers))

    def cells(choice: Choice) -> list[Branches | None]:
        changed = swapped(replace(spec, layers=distinct) if choice.edits else spec, choice)
        if changed is None:
            return [None] * len(specs)
        if not choice.edits:
            return [_branches(each, "attn") if each else None for each in with_others(changed)]
        made = dict(zip(distinct, changed.layers, strict=True))
        return [[made[layer].attn for layer in each.layers] if each else None for each in specs]

    return [_variant(cells(choice)) for choice in choices["kv"]]


def _feed_forward(spec: Decoder, choices: dict[str, list[Choice]]) -> list[_Variant | None]:
    """Returns the feed-forward variant of each number of experts and of experts per token."""
    changed = (each for n in choices["experts"] for each in both(spec, n, choices["k"]))
    return [_variant([_branches(each, "ffn")]) if each else None for each in changed]


def _branches(spec: Decoder, role: str) -> Branches:
    return [dict(layer.branches()).get(role) for layer in spec.layers]


class _Role:
    """The variants of attention, or those of the feed-forward, and their groups.

    In all variants of a group, the same layers are equal and have the same names and looks. `used`: {(group, branch):
    all ways of SHOWN in which some drawing shows the branch}.
    """

    def __init__(self, spec: Decoder, name: str, variants: Sequence[_Variant | None]) -> None:
        self.spec, self.name = spec, name
        found = dict[tuple[Any, ...], tuple[int, _Variant]]()  # the number of each group, and its first variant
        self.numbered = [
            (found.setdefault(self._key(each), (len(found), each))[0], each) if each else None for each in variants
        ]
        self.groups = [first for _, first in found.values()]
        self.used: dict[tuple[int, int], set[Shown]] = defaultdict(set)

    def _key(self, variant: _Variant) -> tuple[Any, ...]:
        alone = [Layer(**dict.fromkeys(("attn", "ffn")) | {self.name: branch}) for branch in variant.branches]
        return variant.cells, tuple((aspects(layer), look(layer, self.spec)) for layer in alone)

    def parts(self, intern: Intern) -> list[Json | None]:
        """Returns, for each variant, its group and the parts of its branches."""

        def part(group: int, i: int, branch: Placement, shown: Shown) -> int | None:
            if shown not in self.used[group, i]:
                return None
            return intern(branch_fragment(self.spec, self.name, branch, shown, "narrow"))

        def parts(group: int, variant: _Variant) -> Json:
            made = [[part(group, i, each, how) for how in SHOWN] for i, each in enumerate(variant.branches)]
            return {"group": group, "parts": made}

        return [parts(*each) if each else None for each in self.numbered]


class _Structures:
    """The kinds of equal layers in swapped models, and the contents of each kind's frame."""

    def __init__(self, spec: Decoder, drawn: Drawn, attention: _Role, feed_forward: _Role) -> None:
        self.spec, self.drawn = spec, drawn
        self.attention, self.feed_forward = attention, feed_forward
        self.rests = list(dict.fromkeys(map(_rest, spec.layers)))
        self.rest_of = [self.rests.index(_rest(layer)) for layer in spec.layers]
        self.frames = dict[Frame, int]()  # frame -> its number
        self.layer = cache(self._layer)
        self.top = cache(lambda *frame: drawn(lambda rows: rows.top(*frame))[0])
        self.pattern = cache(lambda *stated: drawn(lambda rows: rows.pattern(*stated))[0])

    def of(self, i: int, j: int) -> list[Json | None]:
        """Returns the structures of attention group i with feed-forward group j, one for each cell of attention."""
        computing = self.feed_forward.groups[j].cells[0] or ()
        cells = self.attention.groups[i].cells
        return [
            self._structure(i, j, list(zip(mixing, computing, self.rest_of, strict=True))) if mixing else None
            for mixing in cells
        ]

    def _structure(self, i: int, j: int, layers: list[Kind]) -> Json:
        counts = Counter(layers)
        kinds = list(counts)
        made = [self.layer(i, j, kind) for kind in kinds]
        names, looks = labels(made), [look(layer, self.spec) for layer in made]
        pattern = folded([names[kinds.index(kind)] for kind in layers]) if len(kinds) > 1 else ""

        def branch(role: _Role, group: int, place: int, position: int) -> tuple[int, int] | None:
            at = kinds[position][place]
            if at is None:
                return None
            numbers = [n if kind[place] == at else 0 for kind, n in counts.items()]
            home = numbers.index(max(numbers))  # the index of the frame that shows the block in full
            shown: Shown = "here" if home == position else "below" if home > position else "above"
            role.used[group, at].add(shown)
            return at, SHOWN.index(shown)

        frames = [
            Frame(
                top=self.top(counts[kind], names[position] if pattern else "", looks[position]),
                look=looks[position],
                attn=branch(self.attention, i, 0, position),
                ffn=branch(self.feed_forward, j, 1, position),
                rest=kind[2],
            )
            for position, kind in enumerate(kinds)
        ]
        numbers = [self.frames.setdefault(frame, len(self.frames)) for frame in frames]
        runs = [[len(list(run)), position] for position, run in groupby(kinds.index(kind) for kind in layers)]
        return {"kinds": numbers, "runs": runs, "pattern": self.pattern(tuple(dict.fromkeys(looks)), pattern)}

    def _layer(self, i: int, j: int, kind: Kind) -> Layer:
        attn, ffn, rest = kind
        return Layer(
            None if attn is None else self.attention.groups[i].branches[attn],
            None if ffn is None else self.feed_forward.groups[j].branches[ffn],
            *self.rests[rest],
        )

    def rest_parts(self, intern: Intern) -> list[list[tuple[str, int]]]:
        """Returns the parts after the two branches, as [role, part]: per-layer inputs, and the bottom of the frame."""

        def parts(inputs: Placement | None, output_scale: LayerScale | None) -> Iterator[tuple[str, int]]:
            if inputs:
                yield "inputs", intern(branch_fragment(self.spec, "inputs", inputs, layout="narrow"))
            yield "end", self.drawn(lambda rows: rows.bottom(output_scale, 1))[0]

        return [list(parts(*rest)) for rest in self.rests]


def _rest(layer: Layer) -> Rest:
    return layer.inputs, layer.output_scale
