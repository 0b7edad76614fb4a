"""The layout of a drawing on a page and on a phone, and its blow-ups: a blow-up holds the inside of its block,
or the differences from another block that is drawn in full."""

from collections.abc import Iterator
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

GAP, BAR, TABLE, PLUS = 12.0, 21.0, 28.0, 7.5  # gap between boxes, height of a norm and of a table, radius of a sum
TAP, PANEL_TOP = 14.0, 5.0  # y of the start of a branch and of a blow-up, in a row
REPEATED = ("reach",)  # facts that repeat another fact
MAX_CHANGES = 5  # most differences for a block to be drawn by its differences from another


@dataclass(frozen=True)
class Layout:
    """Horizontal places: the frame of a layer, the residual stream, the blocks on a branch, the blow-ups."""

    width: float
    left: float  # of the whole drawing
    frame_end: float
    stream: float
    rail: float  # of a branch
    block: float
    block_end: float
    panel: float
    panel_end: float

    @property
    def narrow(self) -> bool:
        """Whether blow-ups stand below their blocks."""
        return self.panel < self.frame_end

    @property
    def inner_width(self) -> float:
        """The width of a block's inside: in its blow-up, or in its box if blow-ups stand below."""
        return (self.block_end - self.block if self.narrow else self.panel_end - self.panel) - 24


LAYOUTS = {
    "wide": Layout(760, 22, 292, 46, 98, 76, 280, 326, 738),
    "narrow": Layout(360, 10, 350, 27, 76, 48, 342, 10, 350),
}


class Kind(NamedTuple):
    """Equal layers of a model: a label that tells them from others ("" if there are no others), their number, and
    their look."""

    layer: Layer
    label: str
    layers: int
    look: Look


class Spot(NamedTuple):
    """A branch of the kind of layer at `position`, which `layers` layers have."""

    position: int
    role: str
    branch: Placement
    layers: int


class Drawn(NamedTuple):
    """The form of a block's blow-up: in full, or by its differences from a block that is drawn in full."""

    position: int  # of the kind of layer where the block is drawn in full
    like: Block | None = None  # another block that differs only slightly


Places = dict[tuple[str, Block], Drawn]  # by a branch's role and its block


@dataclass
class BlowUps:
    """The blow-ups of one drawing. `badges` are the numbers of call-outs about blocks that most layers have and about
    parts that occur once. `elsewhere` are the numbers about the inside of other blocks. `where` sets the place of each
    block's blow-up; if it is empty, they are computed."""

    canvas: Canvas
    layout: Layout
    costs: Costs
    kinds: list[Kind]
    badges: Badges
    elsewhere: Badges
    with_costs: bool
    where: Places = field(default_factory=dict)
    inner = range(0)  # indices of the statements in the last blow-up

    def __post_init__(self) -> None:
        self.spec = self.costs.spec
        roles = dict.fromkeys(role for each in self.kinds for role, _ in each.layer.branches())
        self.where = self.where or {key: drawn for role in roles for key, drawn in self._places(role)}

    def _places(self, role: str) -> Iterator[tuple[tuple[str, Block], Drawn]]:
        """Yields the place of each blow-up of a role: the kind of layer to which most layers with this block belong. A
        block that hardly differs from a block of more layers refers to it."""
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
        """Returns the statements, as (text, fact), in which a blow-up of `block` differs from one of `other`; none if
        there are more than MAX_CHANGES."""
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
        """Returns the statements of a block's blow-up as (place, text), in order."""
        scratch = Canvas(0, "", "")
        inside(block, Region(scratch, 0, 0, self.layout.inner_width, self.spec.dim, role))
        return list(scratch.facts)

    def is_blown_up(self, spot: Spot) -> bool:
        """Whether a branch's block is blown up in this kind of layer."""
        return self.where[spot.role, spot.branch.block].position == spot.position

    def contents(self, x: float, y: float, spot: Spot) -> float:
        """Draws the contents of a blow-up: the inside of its block or its differences from another, and its costs.
        Returns the y below them."""
        role, block = spot.role, spot.branch.block
        canvas, drawn, first = self.canvas, self.where[role, block], len(self.canvas.statements)
        canvas.facts[f"{role}.block", repr(block)] = None
        badges = self.badges if self.is_main(spot) else self.elsewhere
        region = Region(canvas, x, y, self.layout.inner_width, self.spec.dim, role, badges)
        bottom = inside(block, region) if drawn.like is None else self._variant(region, role, block, drawn)
        self.inner = range(first, len(canvas.statements))
        if not self.with_costs:
            return bottom
        canvas.path(f"M{x} {bottom + 8:g}h{region.width:g}", "rule")
        return self.costs.cells(canvas, x, bottom + 13, region.width, self.costs.of(block, spot.layers))

    def _variant(self, region: Region, role: str, block: Block, drawn: Drawn) -> float:
        """Draws a block by its differences from a block that is drawn in full. Returns the y below it."""
        assert drawn.like is not None
        other = self.where[role, drawn.like].position
        changes = self._changes(role, block, drawn.like)
        scratch = dict.fromkeys(self._stated(role, block))
        for place, text in scratch:  # as if it were drawn in full
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
        """Whether this kind of layer holds the blow-up of the role's most frequent block."""
        first = next(drawn for (role, _), drawn in self.where.items() if role == spot.role)
        return first.position == spot.position
