"""The parts that a drawing is stacked from, one by one, for a page that puts many drawings together from parts that
they share: a swap of attention leaves the parts of the feed-forward as they were."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch

from zoo.blocks.layer import Placement
from zoo.blocks.layer_scale import LayerScale
from zoo.diagram.blow_ups import BlowUps, Drawn, Places
from zoo.diagram.canvas import Canvas, Fragment
from zoo.diagram.figure import LAYOUTS, after_layers, before_layers, draw_pattern
from zoo.diagram.looks import Look
from zoo.diagram.parts import Costs
from zoo.diagram.region import Badges
from zoo.diagram.rows import Rows
from zoo.model.decoder import Decoder

Shown = Literal["here", "above", "below"]
POSITIONS = {"here": 0, "above": -1, "below": 1}  # of where a block is blown up, from where its branch is


class Fragments:
    """The parts of drawings of one model and of those that have other layers: the same that zoo.diagram.svg stacks, but
    for two things. Tooltips are of one layer, however many a frame stands for; and a block is drawn in full where `svg`
    may draw how it differs from another. FLOPs are of one token that sees `context` tokens, caches in `dtype`.

    A page draws the strip of layers by itself: from each layer's look (zoo.diagram.looks).
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
        """What stands before the layers: token ids, embedding, ..."""
        return self._drawn(before_layers)

    def after(self) -> list[Fragment]:
        """What stands after them: final norm, head, logits."""
        return self._drawn(after_layers)

    def pattern(self, looks: Iterable[Look], pattern: str) -> Fragment:
        """What stands below the strip of layers: its legend, and the pattern in text, if there is one."""
        canvas = Canvas(self._layout.width, "", "")
        with canvas.fragment() as height:
            height.append(draw_pattern(canvas, self._layout, looks, pattern, 0))
        return canvas.fragments()[0]

    def top(self, layers: int, label: str, look: Look) -> Fragment:
        """The top of the frame that stands for so many `layers`, with the `label` that tells them from others."""
        return self._drawn(lambda rows: rows.top(layers, label, look))[0]

    def bottom(self, output_scale: LayerScale | None) -> Fragment:
        """The bottom of a layer's frame."""
        return self._drawn(lambda rows: rows.bottom(output_scale, 1))[0]

    def branch(self, role: str, branch: Placement, shown: Shown = "here") -> Fragment:
        """A branch. Its block is blown up in it ("here"), or is said to be so in a frame above or below."""
        where: Places = {(role, branch.block): Drawn(POSITIONS[shown])}
        return self._drawn(lambda rows: rows.branch(0, role, branch, 1), where)[0]

    def _drawn(self, draw: Callable[[Rows], None], where: Places | None = None) -> list[Fragment]:
        canvas = Canvas(self._layout.width, "", "")
        draw(
            Rows(BlowUps(canvas, self._layout, self._costs, [], Badges({}), Badges({}), with_costs=False, where=where))
        )
        return canvas.fragments()
