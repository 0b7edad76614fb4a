"""Draws the inside of a block. `inside` has a function for each known kind. Any other kind is drawn as its name, its
description and, for a mixer, its states."""

from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch

from zoo.blocks import (
    GLU,
    GQA,
    KDA,
    MLA,
    MLP,
    CompressedAttention,
    DenseAndMoE,
    FeedForward,
    GatedDeltaNet,
    Mamba2,
    MoE,
    ShortConv,
)
from zoo.costs import State
from zoo.diagram.attention import compressed_attention, grouped_query_attention, latent_attention
from zoo.diagram.canvas import LINE, SMALL, typeset, wrap_text
from zoo.diagram.region import ARROW, Bar, Lanes, Region, chips, example_choice, experts, heads, kind, output, title
from zoo.registry import Mixer, Spec, stated

FUNNEL = 24.0  # height of the funnel that stands for a linear map
STATES_SIDE_BY_SIDE = 2


@singledispatch
def inside(block: Spec, region: Region) -> float:
    """Draws a block's inside. Returns the y below it."""
    return _described(region, block)


def _described(region: Region, block: Spec) -> float:
    """Draws a block's kind and its description. Returns the y below them."""
    y = title(region, kind(block)) + 6
    description = typeset(block.describe())
    css_class = region.canvas.with_fact("ink", f"{region.place}.description", block.describe())
    lines = wrap_text(description, region.width)
    return region.canvas.lines(region.x, y, lines, region.width, css_class) - 6


@inside.register
def _(block: Mixer, region: Region) -> float:
    """Draws the description of a mixer that has no drawing of its own, and a box for each state that it keeps."""
    y = _described(region, block)
    states = block.cache_spec().state
    for i in range(0, len(states), STATES_SIDE_BY_SIDE):
        lanes = Lanes(region.at(y + 5), (1,) * len(states[i : i + STATES_SIDE_BY_SIDE]))
        lanes.stage(*(_state_bar(column, state) for column, state in enumerate(states[i : i + STATES_SIDE_BY_SIDE])))
        y = lanes.y
    return y


def _state_bar(column: int, state: State) -> Bar:
    shape = " × ".join(f"{size:,}" for size in state.shape)
    text = f"{state.name} state {shape}" + (", float32" if state.in_float32 else "")
    return Bar(column, column, text, "latent", f"{state.name} state")


inside.register(GQA)(grouped_query_attention)
inside.register(MLA)(latent_attention)
inside.register(CompressedAttention)(compressed_attention)


@inside.register
def _(block: DenseAndMoE, region: Region) -> float:
    y = inside(block.dense, region)
    return inside(block.routed, replace(region, y=y + 14, place=f"{region.place}.routed"))


@inside.register
def _(block: GLU | MLP, region: Region) -> float:
    name = typeset(block.act.describe()) if isinstance(block, GLU) else kind(block)
    y = title(region, name, (_widths(block, region.dim), "hidden"))
    return _funnels(block, region.at(y + 2))


def _funnels(block: GLU | MLP, region: Region) -> float:
    """Draws the linear maps as funnels with widths to scale, and the activation between them."""
    names = ("gate", "up") if isinstance(block, GLU) else ("up",)
    lanes = Lanes(region, (1,) * len(names))
    for column, name in enumerate(names):
        _funnel(lanes, region.y, column, column, f"{name} {region.dim:,} → {block.hidden:,}", region.dim / block.hidden)
    last = len(names) - 1
    act = typeset(block.act.formula if isinstance(block, GLU) else block.act.describe())
    lanes.stage(Bar(0, last, act, "chip", "act"), badges=("act",))
    _funnel(lanes, lanes.y + ARROW, 0, last, f"down {block.hidden:,} → {region.dim:,}", block.hidden / region.dim)
    return chips(region.at(lanes.y + 7), [("biases", "bias")]) if block.bias else lanes.y


def _funnel(lanes: Lanes, top: float, first: int, last: int, text: str, ratio: float) -> None:
    """Draws a linear map as a funnel over some columns. Its upper edge is `ratio` times as wide as its lower edge."""
    x, width = lanes.span(first, last)
    lanes.reserve(first, last, top)
    middle, upper, lower = x + width / 2, width / 2 * min(ratio, 1.0), width / 2 * min(1 / ratio, 1.0)
    canvas, bottom = lanes.region.canvas, top + FUNNEL
    canvas.path(f"M{middle - upper} {top}H{middle + upper}L{middle + lower} {bottom}H{middle - lower}z", "wide")
    canvas.text(middle, top + 16, text, SMALL, width, anchor="middle")
    lanes.taken(first, last, bottom)


@inside.register
def _(block: MoE, region: Region) -> float:
    details = [(f"{block.router.k:,} of {block.experts:,} experts active", "experts")]
    details += [("and 1 shared", "shared")] if block.shared else []
    y = title(region, kind(block), *details)
    lanes = Lanes(region.at(y + 2), (4, 1) if block.shared else (1,), gap=14)
    last = len(lanes.columns) - 1
    lanes.stage(Bar(0, 0, typeset(block.router.describe()), "chip", "router"), badges=("router",))
    if block.latent:
        lanes.stage(Bar(0, 0, f"projected to a latent of {block.latent:,}", "inner", "latent"))
    bottom = _experts(lanes, block)
    y = bottom + 15
    for text, fact in _expert_widths(block, region.dim):
        for line in wrap_text(text, region.width):
            region.at(y).line(line, fact)
            y += LINE
    options = [("biases", "bias")] if getattr(block.expert, "bias", False) else []
    y = chips(region.at(y - 6), options) if options else y - 9
    lanes.taken(0, last, y)
    lanes.stage(Bar(0, last, "weighted sum" + (", plus the shared expert" if last else ""), "inner", "sum"))
    return lanes.y


def _experts(lanes: Lanes, block: MoE) -> float:
    """Draws a square for each routed expert, and the shared expert in its own column. Returns the y below them."""
    region, top = lanes.region, lanes.y + ARROW + 2
    (x, width), canvas = lanes.columns[0], region.canvas
    grid = replace(region, x=x, y=top, width=width)
    lanes.reserve(0, 0, top - 2)
    bottom = max(experts(grid, block.experts, *example_choice(block.router, block.experts)), top + 14)
    if block.shared:
        x, width = lanes.columns[1]
        middle, side = x + width / 2, 14.0
        y = max((top + bottom) / 2 - side, top)
        canvas.boxes([(middle - side / 2, y, side, side)], "chosen")
        canvas.text(middle, y + side + 13, "shared", SMALL, width + 12, "faint", "middle")
        region.badge(("shared",), middle + side, y)
        bottom = max(bottom, y + side + 16)
    return bottom


def _expert_widths(block: MoE, dim: int) -> list[tuple[str, str]]:
    """Returns (text, fact) for the width of a routed expert, and for that of the shared expert if it differs."""
    inner = block.latent or dim
    lines = [(f"each expert: {_kind(block.expert)}, {_widths(block.expert, inner)}", "expert")]
    shared = block.shared
    if shared and (shared != block.expert or inner != dim):
        lines.append((f"shared: {_kind(shared)}, {_widths(shared, dim)}", "shared expert"))
    return lines


def _kind(block: Spec) -> str:
    """Returns the kind of a block, without sizes: "gated SwiGLU", "MLP with squared ReLU"."""
    return typeset(str(stated(block)["kind"]))


def _widths(block: FeedForward, dim: int) -> str:
    return f"{dim:,} → {block.width:,} → {dim:,}"


# Mixers that keep a state.

Column = tuple[str, int, str]  # label, number of heads, their CSS class; for 0 heads, a text instead of the class


@inside.register
def _(block: GatedDeltaNet | KDA, region: Region) -> float:
    """Draws queries, keys and values, and the update of the state by a token."""
    if isinstance(block, KDA):
        key_heads, value_heads, widths = block.heads, block.heads, f"each {block.head_dim:,} wide"
        decay, gate, state = "by channel", "sigmoid", (block.heads, block.head_dim, block.head_dim)
    else:
        key_heads, value_heads, decay, gate = block.key_heads, block.value_heads, "by head", "silu"
        widths = f"keys {block.key_dim:,} wide, values {block.value_dim:,}"
        state = (block.value_heads, block.key_dim, block.value_dim)
    shared = f" on {key_heads:,} key heads" if key_heads < value_heads else ""
    y = title(region, _kind(block), (f"{value_heads:,} heads{shared}", "heads"), (widths, "widths"))
    columns = ("queries", key_heads, "queries"), ("keys", key_heads, "keys"), ("values", value_heads, "keys")
    lanes = _columns(region.at(y), (*columns, ("decay, β", 0, decay)), (1, 1, 1.1, 1.3))
    lanes.stage(Bar(0, 2, f"convolution over {block.conv:,} tokens", "latent", "conv"))
    lanes.stage(Bar(0, 1, "L2-normalised", "chip-norm", "lengths"))
    _state(lanes, 3, state, "decays, then writes v at k with strength β")
    norm = f"{type(block.norm).__name__}, × {gate} of a gate"
    lanes.stage(Bar(0, 3, norm, "chip-norm", "norm"))
    return output(lanes, 3, state[0] * state[2])


@inside.register
def _(block: Mamba2, region: Region) -> float:
    """Draws the vectors that a token has for the state (input x, write B, read C), and its time step."""
    groups = (f"in {block.groups:,} groups", "groups") if block.groups > 1 else ("B and C shared by all", "groups")
    widths = f"each {block.head_dim:,} wide"
    y = title(region, _kind(block), (f"{block.heads:,} heads", "heads"), (widths, "widths"), groups)
    columns = ("x", block.heads, "keys"), ("B", block.groups, "keys"), ("C", block.groups, "queries")
    lanes = _columns(region.at(y), (*columns, ("time step", 0, "by head")), (1.6, 0.8, 0.8, 1))
    lanes.stage(Bar(0, 2, f"convolution over {block.conv:,} tokens", "latent", "conv"))
    if block.min_step:
        lanes.stage(Bar(3, 3, f"at least {block.min_step:g}", "chip", "min step"))
    _state(lanes, 3, (block.heads, block.head_dim, block.state), "decays by the time step, adds x at B, is read at C")
    lanes.stage(Bar(0, 3, "plus D x, × silu of a gate, RMSNorm", "chip-norm", "norm"))
    return output(lanes, 3, block.heads * block.head_dim)


@inside.register
def _(block: ShortConv, region: Region) -> float:
    """Draws a convolution between two gates."""
    y = title(region, "Short convolution", (f"{block.channels:,} channels", "channels"))
    lanes = Lanes(region.at(y), (1, 1, 1))
    lanes.stage(*(Bar(i, i, name, "inner", "projections") for i, name in enumerate(("u", "B", "C"))))
    lanes.stage(Bar(0, 1, "B u", "chip", "gate before"))
    lanes.stage(Bar(0, 1, f"convolution over {block.conv:,} tokens", "latent", "conv"))
    lanes.stage(Bar(0, 2, "× C", "chip", "gate after"))
    return output(lanes, 2, block.channels)


def _columns(region: Region, columns: Sequence[Column], shares: Sequence[float]) -> Lanes:
    """Draws a label for each column and, below it, a box for each head or a text."""
    lanes = Lanes(region, shares)
    for i, (label, number, what) in enumerate(columns):
        x, width = lanes.columns[i]
        region.canvas.text(x + width / 2, region.y + 9, label, SMALL, width, "ink", "middle")
        if number:
            lanes.taken(i, i, heads(replace(region, x=x, y=region.y + 14, width=width), number, number, what))
        else:
            region.canvas.text(x + width / 2, region.y + 24, what, SMALL, width, "faint", "middle")
            lanes.taken(i, i, region.y + 28)
    return lanes


def _state(lanes: Lanes, last: int, shape: tuple[int, int, int], change: str) -> None:
    sizes = " × ".join(f"{size:,}" for size in shape)
    lanes.stage(Bar(0, last, f"state {sizes}: {change}", "latent", "state"), badges=("state",))
