"""The layouts of a diagram, wide for a page and narrow for a phone, and its blow-ups. A blow-up shows the inside of a
block, or only how the block differs from another that is drawn in full."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from zoo.blocks import Layer
from zoo.blocks.layer import Placement
from zoo.diagram.canvas import Canvas
from zoo.diagram.insides import inside
from zoo.diagram.looks import Look
from zoo.diagram.parts import Costs
from zoo.diagram.region import MASK, Badges, Region, chips, kind, mask, title
from zoo.registry import Block, Mixer

GAP, BAR, TABLE, PLUS = 12.0, 21.0, 28.0, 7.5  # gap between boxes, heights of a norm and a table, radius of a plus
TAP, PANEL_TOP = 14.0, 5.0  # y within a row at which its branch and its blow-up start
REPEATED = ("reach",)  # facts that another fact already states
MAX_CHANGES = 5  # a block with more differences from another is drawn in full


@dataclass(frozen=True)
class Layout:
    """The x positions in a diagram: the frame of a layer, the residual stream, the blocks on a branch, the blow-ups."""

    width: float
    left: float  # left edge of the whole drawing
    frame_end: float
    stream: float
    rail: float  # line of a branch, which leaves the stream
    block: float
    block_end: float
    panel: float
    panel_end: float

    @property
    def narrow(self) -> bool:
        """Whether blow-ups are drawn inside their blocks, since there is no room beside them."""
        return self.panel < self.frame_end

    @property
    def inner_width(self) -> float:
        """The width for the inside of a block: that of a blow-up, or of the block's box in a narrow layout."""
        return (self.block_end - self.block if self.narrow else self.panel_end - self.panel) - 24


LAYOUTS = {
    "wide": Layout(760, 22, 292, 46, 98, 76, 280, 326, 738),
    "narrow": Layout(360, 10, 350, 27, 76, 48, 342, 10, 350),
}


class Kind(NamedTuple):
    """A set of equal layers of a model: a label that distinguishes it from other sets ("" if there are none), the
    number of layers, and their colours in the strip of all layers (zoo.diagram.looks)."""

    layer: Layer
    label: str
    layers: int
    look: Look


class Callout(NamedTuple):
    """A numbered sentence about a part of a model (None: about no part that is drawn), and the layers that it is about
    (none: about all layers)."""

    part: str | None
    sentence: str
    layers: frozenset[Layer] = frozenset()


class Spot(NamedTuple):
    """A branch in the `position`-th kind of layer. `layers` is the number of layers of this kind."""

    position: int
    role: str
    branch: Placement
    layers: int


class Drawn(NamedTuple):
    """The place and form of a block's blow-up. It shows the block in full, or its differences from the block `like`."""

    position: int  # index of the kind of layer that shows the blow-up
    like: Block | None = None  # a similar block, which is drawn in full


Places = dict[tuple[str, Block], Drawn]  # (role of a branch, its block) -> blow-up


@dataclass
class BlowUps:
    """The blow-ups of a diagram. `badges` are the numbers of the `callouts` that are not drawn yet. `where` maps each
    block to its blow-up; if it is empty, it is computed."""

    canvas: Canvas
    layout: Layout
    costs: Costs
    kinds: list[Kind]
    badges: Badges
    with_costs: bool
    callouts: Sequence[Callout] = ()
    where: Places = field(default_factory=dict)
    inner = range(0)  # indices of the last blow-up's statements in Canvas.statements

    def __post_init__(self) -> None:
        self.spec = self.costs.spec
        roles = dict.fromkeys(role for each in self.kinds for role, _ in each.layer.branches())
        self.where = self.where or {key: drawn for role in roles for key, drawn in self._places(role)}
        self._homes = [self._home(callout) for callout in self.callouts]

    def _home(self, callout: Callout) -> tuple[str | None, int | None]:
        """Returns (role, index of the kind of layer) of the branch at which a call-out's number is drawn: where the
        block is drawn that most of its layers have. The role is None for a part of any branch, and the index None for a
        part that is not said to belong to a role: its number is drawn at a main block."""
        name = (callout.part or "").partition(".")[0]
        kinds = [(i, each) for i, each in enumerate(self.kinds) if each.layer in callout.layers or not callout.layers]
        if name in ("norm", "streams"):
            return None, max(kinds, key=lambda kind: kind[1].layers)[0]
        counts = Counter[Block]()
        for _, each in kinds:
            for role, branch in each.layer.branches():
                counts[branch.block] += each.layers * (role == name)
        block = max(counts, key=lambda block: counts[block], default=None)
        if block is None or not counts[block]:
            return None, None
        return name, self.where[name, block].position

    def badges_at(self, spot: Spot) -> Badges:
        """Returns the call-out numbers that may be drawn at a branch, or inside its block."""
        is_main = self.is_main(spot)
        return self.badges.among(
            number
            for number, (role, position) in enumerate(self._homes, 1)
            if role in (None, spot.role) and (is_main if position is None else position == spot.position)
        )

    def _places(self, role: str) -> Iterator[tuple[tuple[str, Block], Drawn]]:
        """Yields the blow-up of each block of a role. It is drawn in the kind of layer with the most layers that have
        the block. A block that differs little from a more frequent block is drawn by its differences."""
        counts: dict[Block, list[int]] = {}
        for position, each in enumerate(self.kinds):
            branch = dict(each.layer.branches()).get(role)
            if branch:
                counts.setdefault(branch.block, [0] * len(self.kinds))[position] += each.layers
        full: dict[Block, int] = {}
        for block, numbers in sorted(counts.items(), key=lambda item: -sum(item[1])):
            position = numbers.index(max(numbers))
            like = next((other for other in full if self._changes(role, block, other)), None)
            if like is None:
                full[block] = position
            yield (role, block), Drawn(position, like)

    def _changes(self, role: str, block: Block, other: Block) -> list[tuple[str, str]]:
        """Returns the statements, as (text, fact), that differ between the blow-ups of `block` and `other`. The list is
        empty if there are more than MAX_CHANGES, or if the blocks are of different kinds."""
        if type(block) is not type(other):
            return []
        here, there = (self._stated(role, each) for each in (block, other))
        places = {place for place, _ in here}
        changed = [(text, place) for place, text in here if (place, text) not in there]
        changed += [(f"without {text}", f"{role}.dropped") for place, text in there if place not in places]
        facts = ((text, place.removeprefix(f"{role}.")) for text, place in changed)
        changes = list({text: (text, fact) for text, fact in facts if fact not in REPEATED}.values())
        return changes if len(changes) <= MAX_CHANGES else []

    def _stated(self, role: str, block: Block) -> list[tuple[str, str]]:
        """Returns the statements (place, text) in the blow-up of a block, in order."""
        scratch = Canvas(0, "", "")
        inside(block, Region(scratch, 0, 0, self.layout.inner_width, self.spec.dim, role))
        return list(scratch.facts)

    def is_blown_up(self, spot: Spot) -> bool:
        """Whether the blow-up of a branch's block is drawn in this kind of layer."""
        return self.where[spot.role, spot.branch.block].position == spot.position

    def contents(self, x: float, y: float, spot: Spot) -> float:
        """Draws the contents of a blow-up: the inside of its block, or the block's differences from another, and then
        its costs. Returns the y below them."""
        role, block = spot.role, spot.branch.block
        canvas, drawn, first = self.canvas, self.where[role, block], len(self.canvas.statements)
        canvas.facts[f"{role}.block", repr(block)] = None
        region = Region(canvas, x, y, self.layout.inner_width, self.spec.dim, role, self.badges_at(spot))
        bottom = inside(block, region) if drawn.like is None else self._variant(region, role, block, drawn)
        self.inner = range(first, len(canvas.statements))
        if not self.with_costs:
            return bottom
        canvas.path(f"M{x} {bottom + 8:g}h{region.width:g}", "rule")
        return self.costs.cells(canvas, x, bottom + 13, region.width, self.costs.of(block, spot.layers))

    def _variant(self, region: Region, role: str, block: Block, drawn: Drawn) -> float:
        """Draws the differences of a block from another block that is drawn in full. Returns the y below them."""
        assert drawn.like is not None
        other = self.where[role, drawn.like].position
        changes = self._changes(role, block, drawn.like)
        scratch = dict.fromkeys(self._stated(role, block))
        for place, text in scratch:  # a comparison of diagrams sees the same facts as in a full drawing
            self.canvas.facts[place, text] = None
        reach = block.cache_spec().reach if isinstance(block, Mixer) else None
        indent = MASK + 12 if reach else 0.0
        if reach:
            mask(region, reach)
        below = "above" if other < drawn.position else "below"
        at = replace(region, x=region.x + indent, width=region.width - indent)
        y = title(at, kind(block), (f"as in the layers {below}, but", ""))
        return max(chips(at.at(y), changes), region.y + (MASK if reach else 0))

    def is_main(self, spot: Spot) -> bool:
        """Whether the blow-up of the role's most frequent block is drawn in this kind of layer."""
        first = next(drawn for (role, _), drawn in self.where.items() if role == spot.role)
        return first.position == spot.position
