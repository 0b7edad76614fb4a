"""Makes the figure of the model that a command line names."""

from collections.abc import Sequence

import torch

from zoo import diagram
from zoo.catalog import ancestor, sizes, spec, title
from zoo.cli.card import spaced, swapped_specs
from zoo.diagram import Theme
from zoo.swaps.differences import structure_differences
from zoo.units import format_count


def figure(
    preset: str,
    tiny: bool = False,
    params: int | None = None,
    swaps: Sequence[str] = (),
    dtype: torch.dtype = torch.bfloat16,
    theme: Theme = "light",
    costs: bool = False,
) -> tuple[str, list[str]]:
    """Returns a preset's figure as SVG, and the features that swaps dropped.

    Numbered sentences list what is new compared with the ancestor. For a swapped model they list the swaps' changes,
    and the figure marks the differences.
    """
    original, drawn, dropped = swapped_specs(preset, tiny, list(swaps), params)
    name = f"{title(preset)} at toy widths" if tiny else title(preset)
    name += f" at {format_count(params)} parameters" if params else ""
    name += f" with {', '.join(map(spaced, swaps))}" if swaps else ""
    known = None if swaps or tiny or params else ancestor(preset)
    other = original if swaps else spec(known) if known else None
    differences = structure_differences(drawn, other) if other else []
    heading = "" if other is None else f"New compared with {title(known)}" if known else "Swapped"
    if other and not differences:
        heading += ": nothing but sizes"
    figure = diagram.svg(
        drawn,
        name,
        dtype=dtype,
        against=original if swaps else None,
        theme=theme,
        costs=costs,
        subtitle=sizes()[preset].hub,
        callouts=diagram.callouts(differences),
        heading=heading,
    )
    return figure, list(dropped)
