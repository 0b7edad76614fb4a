"""Single parts of a drawing, for a page that assembles many drawings from parts that they share. A swap of attention
leaves the parts of the feed-forward as they were."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch

from zoo.blocks.layer import Placement
from zoo.blocks.norms import LayerScale
from zoo.diagram.blow_ups import BlowUps, Drawn, Places
from zoo.diagram.canvas import Canvas, Fragment
from zoo.diagram.figure import LAYOUTS, after_layers, before_layers, draw_pattern
from zoo.diagram.looks import Look
from zoo.diagram.parts import Costs
from zoo.diagram.region import Badges
from zoo.diagram.rows import Rows
from zoo.model.decoder import Decoder

Shown = Literal["here", "above", "below"]
POSITIONS = {"here": 0, "above": -1, "below": 1}  # of a block's blow-up, relative to its branch


class Fragments:
    """The parts of drawings of one model and of its variants with other layers. They are the parts that zoo.diagram.svg
    stacks, with two differences: a tooltip describes one layer, and every block is drawn in full, never by its
    differences. FLOPs are those of one token that sees `context` tokens; caches are in `dtype`.

    A page draws the strip of layers itself, from each layer's look (zoo.diagram.looks).
    """

    def __init__(
        self,
        spec: Decoder,
        *,
        context: int = 4096,
        dtype: torch.dtype = torch.bfloat16,
        layout: Literal["wide", "narrow"] = "wide",
    ) -> None:
        self._costs, self._layout = Costs(spec, context, dtype), LAYOUTS[layout]

    def before(self) -> list[Fragment]:
        """Returns the parts before the layers: token ids, embedding, ..."""
        return self._drawn(before_layers)

    def after(self) -> list[Fragment]:
        """Returns the parts after the layers: final norm, head, logits."""
        return self._drawn(after_layers)

    def pattern(self, looks: Iterable[Look], pattern: str) -> Fragment:
        """Returns the part below the strip of layers: its legend, and the pattern in text, if there is one."""
        canvas = Canvas(self._layout.width, "", "")
        with canvas.fragment() as height:
            height.append(draw_pattern(canvas, self._layout, looks, pattern, 0))
        return canvas.fragments()[0]

    def top(self, layers: int, label: str, look: Look) -> Fragment:
        """Returns the top of a frame that stands for `layers` layers, with the `label` that tells them from others."""
        return self._drawn(lambda rows: rows.top(layers, label, look))[0]

    def bottom(self, output_scale: LayerScale | None) -> Fragment:
        """Returns the bottom of a layer's frame."""
        return self._drawn(lambda rows: rows.bottom(output_scale, 1))[0]

    def branch(self, role: str, branch: Placement, shown: Shown = "here") -> Fragment:
        """Returns a branch. Its block is blown up in it ("here"), or a note refers to a frame above or below."""
        where: Places = {(role, branch.block): Drawn(POSITIONS[shown])}
        return self._drawn(lambda rows: rows.branch(0, role, branch, 1), where)[0]

    def _drawn(self, draw: Callable[[Rows], None], where: Places | None = None) -> list[Fragment]:
        canvas = Canvas(self._layout.width, "", "")
        draw(
            Rows(BlowUps(canvas, self._layout, self._costs, [], Badges({}), Badges({}), with_costs=False, where=where))
        )
        return canvas.fragments()
