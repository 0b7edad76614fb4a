"""Where each block of a drawing is blown up, and what a blow-up holds: the inside of the block, or how it differs from
another that is drawn in full."""

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from typing import NamedTuple, Self

from zoo.blocks import Layer
from zoo.diagram.canvas import Canvas
from zoo.diagram.insides import inside
from zoo.diagram.layout import Layout
from zoo.diagram.looks import Look
from zoo.diagram.parts import Costs
from zoo.diagram.region import MASK, Badges, Region, chips, kind, mask, title
from zoo.registry import Block, Mixer

REPEATED = ("reach",)  # facts that restate another
MAX_CHANGES = 5  # in which a block can differ from another that is drawn and not be drawn itself


class Kind(NamedTuple):
    """Equal layers of a model: what tells them from others in words ("" if there are none), their number, and their
    look."""

    layer: Layer
    label: str
    layers: int
    look: Look


class Drawn(NamedTuple):
    """How a block of one kind of layer is blown up: in full, or by its differences from one that is."""

    position: int  # of the kind of layer where the block is drawn in full
    like: Block | None = None  # another block, from which it differs in little


Places = dict[tuple[str, Block], Drawn]  # by a branch's role and its block


class BlowUps:
    """The blow-ups of one drawing. `badges` are the numbers of call-outs about blocks that most layers have and about
    what stands once, `elsewhere` those about what is inside other blocks. `where` says where each block is blown up, if
    that is not to be found out."""

    def __init__(
        self,
        canvas: Canvas,
        layout: Layout,
        costs: Costs,
        kinds: list[Kind],
        badges: Badges,
        elsewhere: Badges,
        with_costs: bool,
        where: Places | None = None,
    ) -> None:
        self.canvas, self.layout, self.costs, self.kinds = canvas, layout, costs, kinds
        self.badges, self.elsewhere, self.with_costs = badges, elsewhere, with_costs
        self.spec = costs.spec
        self.inner = range(0)  # the statements in the last blow-up
        roles = dict.fromkeys(role for each in kinds for role, _ in each.layer.branches())
        self.where = where or {key: drawn for role in roles for key, drawn in self._places(role)}

    def _places(self, role: str) -> Iterator[tuple[tuple[str, Block], Drawn]]:
        """Where each block of a role is blown up: in the kind of layer that most layers with this block are of. A block
        that hardly differs from one of more layers refers to it."""
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
        """What a blow-up of `block` states otherwise than one of `other`, as (text, fact), where that is little; else
        nothing."""
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
        """What a blow-up of a block states, in order."""
        scratch = Canvas(0, "", "")
        inside(block, Region(scratch, 0, 0, self.layout.inner_width, self.spec.dim, role))
        return list(scratch.facts)

    def is_blown_up(self, position: int, role: str, block: Block) -> bool:
        """Whether a block is blown up in this kind of layer."""
        return self.where[role, block].position == position

    def contents(self, x: float, y: float, position: int, role: str, block: Block, layers: int) -> float:
        """What a blow-up holds: the inside of its block, or how it differs from another; and its costs."""
        canvas, drawn, first = self.canvas, self.where[role, block], len(self.canvas.statements)
        canvas.facts[f"{role}.block", repr(block)] = None
        badges = self.badges if self.is_main(position, role) else self.elsewhere
        region = Region(canvas, x, y, self.layout.inner_width, self.spec.dim, role, badges)
        bottom = inside(block, region) if drawn.like is None else self._variant(region, role, block, drawn)
        self.inner = range(first, len(canvas.statements))
        if not self.with_costs:
            return bottom
        canvas.path(f"M{x} {bottom + 8:g}h{region.width:g}", "rule")
        return self.costs.cells(canvas, x, bottom + 13, region.width, self.costs.of(block, layers))

    def _variant(self, region: Region, role: str, block: Block, drawn: Drawn) -> float:
        """A block by its differences from one that is drawn in full."""
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

    def measuring(self) -> Self:
        """The same on another canvas, to learn how tall it is."""
        twin = copy(self)
        twin.canvas = Canvas(0, "", "")
        twin.badges, twin.elsewhere = Badges(dict(self.badges.numbers)), Badges(dict(self.elsewhere.numbers))
        return twin

    def is_main(self, position: int, role: str) -> bool:
        """Whether the block of this role that most layers have is blown up in this kind of layer."""
        first = next(drawn for (each, _), drawn in self.where.items() if each == role)
        return first.position == position
