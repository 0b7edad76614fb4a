"""A token's path through a model, one row below the other: tables and norms on the residual stream, and for each kind
of layer a frame with its branches. Beside a branch, or below it where the page is narrow, its block is blown up."""

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from typing import NamedTuple

from zoo.blocks import Layer
from zoo.blocks.layer import Placement
from zoo.blocks.layer_scale import LayerScale
from zoo.blocks.norms import Norm
from zoo.diagram.canvas import Canvas, stretch, typeset, wrap_text
from zoo.diagram.flow import BRANCH_NAMES, Flow, branch_name
from zoo.diagram.insides import inside
from zoo.diagram.layout import BAR, GAP, PANEL_TOP, TABLE, Layout
from zoo.diagram.looks import Look, draw_look
from zoo.diagram.parts import Cost, Costs, tooltip
from zoo.diagram.region import BIG, LINE, MASK, SMALL, Badges, Region, chips, kind, mask, title
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


class Rows:
    """The rows of one drawing. `badges` are the numbers of call-outs about blocks that most layers have and about what
    stands once, `elsewhere` those about what is inside other blocks. `where` says where each block is blown up, if that
    is not to be found out."""

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
        self.where = where or {key: drawn for role in BRANCH_NAMES for key, drawn in self._places(role)}

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

    # Rows on the residual stream.

    def ends(self, text: str, down: bool) -> None:
        """The token ids that go in, or the logits that come out."""
        with self.canvas.fragment() as height:
            x, y = self.layout.stream, 20.0 if down else 28.0
            if down:
                self.canvas.path(f"M{x} 22V34", "residual")
            else:
                self.canvas.path(f"M{x} 0V11", "residual")
                self.canvas.path(f"M{x} 17l-5 -7h10z", "tip")
            self.canvas.text(self.layout.left + 4, y - (4 if down else -4), text, SMALL, 220, "faint")
            height.append(34.0 if down else 40.0)

    def table(self, name: str, text: str, cost: Cost, anchor: str) -> None:
        """The embedding or the head, a box on the stream."""
        with self.canvas.fragment() as height, self.canvas.group(tooltip(name, cost)):
            self._on_stream("table", name, text, cost, TABLE, name, (name, text))
            self.badges.draw(self.canvas, (anchor,), self.layout.frame_end - 6, GAP)
            height.append(self._beside(cost, GAP, GAP + TABLE))

    def norm(self, norm: Norm, place: str) -> None:
        """A norm on the stream."""
        cost = self.costs.of(norm, 1)
        with self.canvas.fragment() as height, self.canvas.group(tooltip(norm.describe(), cost)):
            self._on_stream("norm", "", "", cost, BAR, place, (place, type(norm).__name__))
            self.norm_name(self.layout.left, GAP, norm, place)
            height.append(GAP + BAR)

    def _on_stream(
        self, css_class: str, name: str, text: str, cost: Cost, tall: float, place: str, fact: tuple[str, str]
    ) -> None:
        canvas, layout = self.canvas, self.layout
        canvas.path(f"M{layout.stream} 0V{GAP}", "residual")
        left, width = layout.left, layout.frame_end - layout.left
        canvas.rect(left, GAP, width, tall, canvas.stating(css_class, *fact), 5)
        baseline = GAP + tall / 2 + 4.3
        end = left + 10
        if text:
            end += 10 + canvas.text(end, baseline, name, BIG - 1, 120, "strong")
            canvas.text(end, baseline, text, SMALL, left + width - end - 6, place=place)

    def norm_name(self, left: float, top: float, norm: Norm, place: str) -> None:
        """The name in a norm's bar. How it multiplies by its weight is in its tooltip, and marked weakly."""
        css_class = self.canvas.stating("ink", f"{place}.fields", norm.describe(), weak=True)
        self.canvas.text(left + 10, top + 14.5, type(norm).__name__, SMALL, 160, css_class)

    def _beside(self, cost: Cost, top: float, bottom: float) -> float:
        """The costs of a part on the stream, beside it or below; returns the y below both."""
        if not self.with_costs:
            return bottom
        layout = self.layout
        width = layout.panel_end - layout.panel
        if not layout.narrow:
            return max(bottom, self.costs.cells(self.canvas, layout.panel, top, width, cost, detailed=False))
        left, stream = layout.block, self.canvas.path("", "residual")
        end = self.costs.cells(self.canvas, left, bottom + 6, layout.panel_end - left, cost, detailed=False)
        stream.set("d", f"M{layout.stream} {bottom}V{end + 1}")
        return end

    # Layers.

    def layer(self, position: int) -> None:
        """The frame of a kind of layer and the rows of its branches."""
        each = self.kinds[position]
        self.top(each.layers, each.label, each.look)
        for role, branch in each.layer.branches():
            self.branch(position, role, branch, each.layers)
        self.bottom(each.layer.output_scale, each.layers)

    def top(self, layers: int, name: str, look: Look) -> None:
        """The top of a frame: how many layers it stands for, what tells them from others, and their look."""
        canvas, layout = self.canvas, self.layout
        with canvas.fragment() as height:
            left, right, top = layout.left, layout.frame_end, GAP
            x = layout.stream + 18
            label = wrap_text(typeset(name), SMALL, right - x - 40)
            bottom = top + 30 + LINE * len(label)
            frame = f"M{left} {bottom + 1}V{top + 8}q0 -8 8 -8H{right - 8}q8 0 8 8V{bottom + 1}"
            canvas.path(frame, "card")
            canvas.path(f"M{layout.stream} 0V{bottom + 1}", "residual")
            canvas.text(x, top + 22, f"{layers:,} × layer", 15, right - x - 40, "strong")
            draw_look(canvas, right - 34, top + 10, 22, 15, look)
            for i, line in enumerate(label):
                canvas.text(x, top + 38 + LINE * i, line, SMALL, right - x - 12, "faint")
            height.append(bottom)

    def bottom(self, scale: LayerScale | None, layers: int) -> None:
        """The bottom of a frame, with the scale of each layer's output."""
        canvas, layout = self.canvas, self.layout
        with canvas.fragment() as height:
            y = 2.0
            inner = 22.0 if scale else 4.0
            left, right = layout.left, layout.frame_end
            d = f"M{left} -1V{y + inner}q0 8 8 8H{right - 8}q8 0 8 -8V-1"
            canvas.path(d, "card")
            canvas.path(f"M{layout.stream} -1V{y + inner + 8}", "residual")
            if scale:
                with canvas.group(tooltip("output scale", self.costs.of(scale, layers), layers)):
                    canvas.text(layout.block, 14, scale.describe(), SMALL, right - layout.block - 8, "faint")
            height.append(y + inner + 8)

    def branch(self, position: int, role: str, branch: Placement, layers: int) -> None:
        """A branch of a frame."""
        with self.canvas.fragment() as height:
            height.append(self._branch(position, role, branch, layers))

    def _branch(self, position: int, role: str, branch: Placement, layers: int) -> float:
        """A branch off the stream and its block's blow-up; returns the height of the row."""
        canvas, layout = self.canvas, self.layout
        back = canvas.rect(layout.left, 0, layout.frame_end - layout.left, 0, "frame")
        edges, stream = canvas.path("", "rule"), canvas.path("", "residual")
        with canvas.group(tooltip(branch_name(role, branch.block), self.costs.of(branch.block, layers), layers)):
            panel = 0.0 if layout.narrow else self._panel(position, role, branch, layers)
            flow = Flow(self, position, role, branch, layers)
            bottom, box = flow.draw(max(panel + 4 - flow.height, 0.0))
            if panel and self.is_blown_up(position, role, branch.block):
                for y, end in zip(box, (PANEL_TOP, panel), strict=True):
                    canvas.path(f"M{layout.block_end} {y}L{layout.panel} {end}", "guide")
        row = max(bottom, panel + 6)
        stretch(back, row + 1)
        edges.set("d", f"M{layout.left} -1V{row + 1:g}M{layout.frame_end:g} -1V{row + 1:g}")
        stream.set("d", f"M{layout.stream} -1V{row + 1:g}")
        return row

    def is_blown_up(self, position: int, role: str, block: Block) -> bool:
        return self.where[role, block].position == position

    def _panel(self, position: int, role: str, branch: Placement, layers: int) -> float:
        """The blow-up beside a branch, or a note of where it is; returns the y below it."""
        canvas, layout, block = self.canvas, self.layout, branch.block
        cost, left = self.costs.of(block, layers), layout.panel
        if not self.is_blown_up(position, role, block):
            if not self.with_costs:
                return 0.0
            return self.costs.cells(canvas, left, PANEL_TOP + 30, layout.panel_end - left, cost) + 4
        frame = canvas.rect(left, PANEL_TOP, layout.panel_end - left, 0, role, 8)
        bottom = self.contents(left + 12, PANEL_TOP + 10, position, role, block, layers)
        stretch(frame, bottom + 10)
        return bottom + 10

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

    def measuring(self) -> "Rows":
        """The same rows on another canvas, to learn how tall they are."""
        twin = copy(self)
        twin.canvas = Canvas(0, "", "")
        twin.badges, twin.elsewhere = Badges(dict(self.badges.numbers)), Badges(dict(self.elsewhere.numbers))
        return twin

    def is_main(self, position: int, role: str) -> bool:
        """Whether the block of this role that most layers have is blown up in this kind of layer."""
        first = next(drawn for (each, _), drawn in self.where.items() if each == role)
        return first.position == position
