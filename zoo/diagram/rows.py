"""A token's path through a model, in rows from the top: tables and norms on the residual stream, and for each kind of
layer a frame with its branches. A branch's block is blown up beside it, or below it if the page is narrow."""

from collections.abc import Iterable

from zoo.blocks.layer import Placement
from zoo.blocks.norms import LayerScale, Norm
from zoo.diagram.blow_ups import BAR, GAP, PANEL_TOP, TABLE, BlowUps
from zoo.diagram.canvas import LINE, SMALL, stretch, typeset, wrap_text
from zoo.diagram.flow import Flow, branch_name, norm_name
from zoo.diagram.looks import Look, draw_look, draw_pattern
from zoo.diagram.parts import Cost, tooltip
from zoo.diagram.region import BIG


class Rows:
    """The rows of one drawing."""

    def __init__(self, blow_ups: BlowUps) -> None:
        self.blow_ups, self.canvas, self.layout = blow_ups, blow_ups.canvas, blow_ups.layout
        self.costs, self.spec, self.badges = blow_ups.costs, blow_ups.spec, blow_ups.badges

    # Rows on the residual stream.

    def ends(self, text: str, down: bool) -> None:
        """Draws the input token ids or the output logits."""
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
        """Draws the embedding or the head, a box on the stream."""
        with self.canvas.fragment() as height, self.canvas.group(tooltip(name, cost)):
            self._on_stream("table", name, text, cost, TABLE, name, (name, text))
            self.badges.draw(self.canvas, (anchor,), self.layout.frame_end - 6, GAP)
            height.append(self._beside(cost, GAP, GAP + TABLE))

    def norm(self, norm: Norm, place: str) -> None:
        """Draws a norm on the stream."""
        cost = self.costs.of(norm, 1)
        with self.canvas.fragment() as height, self.canvas.group(tooltip(norm.describe(), cost)):
            self._on_stream("norm", "", "", cost, BAR, place, (place, type(norm).__name__))
            norm_name(self.canvas, self.layout.left, GAP, norm, place)
            height.append(GAP + BAR)

    def _on_stream(
        self, css_class: str, name: str, text: str, cost: Cost, tall: float, place: str, fact: tuple[str, str]
    ) -> None:
        canvas, layout = self.canvas, self.layout
        canvas.path(f"M{layout.stream} 0V{GAP}", "residual")
        left, width = layout.left, layout.frame_end - layout.left
        canvas.rect(left, GAP, width, tall, canvas.with_fact(css_class, *fact), 5)
        baseline = GAP + tall / 2 + 4.3
        end = left + 10
        if text:
            end += 10 + canvas.text(end, baseline, name, BIG - 1, 120, "strong")
            canvas.text(end, baseline, text, SMALL, left + width - end - 6, place=place)

    def _beside(self, cost: Cost, top: float, bottom: float) -> float:
        """Draws the costs of a part on the stream, beside it or below. Returns the y below both."""
        if not self.blow_ups.with_costs:
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

    def pattern(self, looks: Iterable[Look], pattern: str) -> None:
        """Draws the legend of the strip of layers, and their pattern in text, if there is one."""
        left, right = self.layout.left, self.layout.panel_end
        with self.canvas.fragment() as height:
            height.append(draw_pattern(self.canvas, looks, pattern, left, 0, right - left))

    def layer(self, position: int) -> None:
        """Draws the frame of a kind of layer and the rows of its branches."""
        each = self.blow_ups.kinds[position]
        self.top(each.layers, each.label, each.look)
        for role, branch in each.layer.branches():
            self.branch(position, role, branch, each.layers)
        self.bottom(each.layer.output_scale, each.layers)

    def top(self, layers: int, name: str, look: Look) -> None:
        """Draws the top of a frame: its number of layers, a label that tells them from others, and their look."""
        canvas, layout = self.canvas, self.layout
        with canvas.fragment() as height:
            left, right, top = layout.left, layout.frame_end, GAP
            x = layout.stream + 18
            label = wrap_text(typeset(name), right - x - 40)
            bottom = top + 30 + LINE * len(label)
            frame = f"M{left} {bottom + 1}V{top + 8}q0 -8 8 -8H{right - 8}q8 0 8 8V{bottom + 1}"
            canvas.path(frame, "card")
            canvas.path(f"M{layout.stream} 0V{bottom + 1}", "residual")
            canvas.text(x, top + 22, f"{layers:,} × layer", 15, right - x - 40, "strong")
            draw_look(canvas, right - 34, top + 10, 22, 15, look)
            canvas.lines(x, top + 38, label, right - x - 12, "faint")
            height.append(bottom)

    def bottom(self, scale: LayerScale | None, layers: int) -> None:
        """Draws the bottom of a frame, with the scale of each layer's output."""
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
        """Draws a branch of a frame."""
        with self.canvas.fragment() as height:
            height.append(self._branch(position, role, branch, layers))

    def _branch(self, position: int, role: str, branch: Placement, layers: int) -> float:
        """Draws a branch off the stream and its block's blow-up. Returns the height of the row."""
        canvas, layout = self.canvas, self.layout
        back = canvas.rect(layout.left, 0, layout.frame_end - layout.left, 0, "frame")
        edges, stream = canvas.path("", "rule"), canvas.path("", "residual")
        with canvas.group(tooltip(branch_name(role, branch.block), self.costs.of(branch.block, layers), layers)):
            panel = 0.0 if layout.narrow else self._panel(position, role, branch, layers)
            flow = Flow(self.blow_ups, position, role, branch, layers)
            bottom, box = flow.draw(max(panel + 4 - flow.height, 0.0))
            if panel and self.blow_ups.is_blown_up(position, role, branch.block):
                for y, end in zip(box, (PANEL_TOP, panel), strict=True):
                    canvas.path(f"M{layout.block_end} {y}L{layout.panel} {end}", "guide")
        row = max(bottom, panel + 6)
        stretch(back, row + 1)
        edges.set("d", f"M{layout.left} -1V{row + 1:g}M{layout.frame_end:g} -1V{row + 1:g}")
        stream.set("d", f"M{layout.stream} -1V{row + 1:g}")
        return row

    def _panel(self, position: int, role: str, branch: Placement, layers: int) -> float:
        """Draws the blow-up beside a branch, or only costs if the block is blown up elsewhere. Returns the y below."""
        canvas, layout, block = self.canvas, self.layout, branch.block
        cost, left = self.costs.of(block, layers), layout.panel
        if not self.blow_ups.is_blown_up(position, role, block):
            if not self.blow_ups.with_costs:
                return 0.0
            return self.costs.cells(canvas, left, PANEL_TOP + 30, layout.panel_end - left, cost) + 4
        frame = canvas.rect(left, PANEL_TOP, layout.panel_end - left, 0, role, 8)
        bottom = self.blow_ups.contents(left + 12, PANEL_TOP + 10, position, role, block, layers)
        stretch(frame, bottom + 10)
        return bottom + 10
