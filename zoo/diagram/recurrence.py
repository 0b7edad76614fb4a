"""Drawings of the inside of mixers that keep a state: the mixing over the last tokens, the state and its update, and
the norm and the gate of the output."""

from collections.abc import Sequence

from zoo.blocks import KDA, GatedDeltaNet, Mamba2, ShortConv
from zoo.diagram.canvas import SMALL
from zoo.diagram.region import Bar, Lanes, Region, heads, title
from zoo.registry import stated

Column = tuple[str, int, str]  # label, number of heads (0: none), their class


def delta_rule(block: GatedDeltaNet | KDA, region: Region) -> float:
    """Draws queries, keys, values, and a token's update of the state. Returns the y below them."""
    if isinstance(block, KDA):
        key_heads, value_heads, widths = block.heads, block.heads, f"each {block.head_dim:,} wide"
        decay, gate, state = "by channel", "sigmoid", (block.heads, block.head_dim, block.head_dim)
    else:
        key_heads, value_heads, decay, gate = block.key_heads, block.value_heads, "by head", "silu"
        widths = f"keys {block.key_dim:,} wide, values {block.value_dim:,}"
        state = (block.value_heads, block.key_dim, block.value_dim)
    shared = f" on {key_heads:,} key heads" if key_heads < value_heads else ""
    y = title(region, _name(block), (f"{value_heads:,} heads{shared}", "heads"), (widths, "widths"))
    columns = ("queries", key_heads, "queries"), ("keys", key_heads, "keys"), ("values", value_heads, "keys")
    lanes = _columns(region.at(y), (*columns, ("decay, β", 0, decay)), (1, 1, 1.1, 1.3))
    lanes.stage(Bar(0, 2, f"convolution over {block.conv:,} tokens", "latent", "conv"))
    lanes.stage(Bar(0, 1, "divided by their lengths", "chip-norm", "lengths"))
    _state(lanes, 3, state, "decays, then holds the value under the key by β")
    norm = f"{type(block.norm).__name__}, × {gate} of a gate"
    lanes.stage(Bar(0, 3, norm, "chip-norm", "norm"))
    return _output(lanes, 3, state[0] * state[2])


def state_space(block: Mamba2, region: Region) -> float:
    """Draws a token's input (x), write (B) and read (C) vectors of the state, and its time step. Returns the y below
    them."""
    groups = (f"in {block.groups:,} groups", "groups") if block.groups > 1 else ("B and C shared by all", "groups")
    y = title(
        region, _name(block), (f"{block.heads:,} heads", "heads"), (f"each {block.head_dim:,} wide", "widths"), groups
    )
    columns = ("x", block.heads, "keys"), ("B", block.groups, "keys"), ("C", block.groups, "queries")
    lanes = _columns(region.at(y), (*columns, ("time step", 0, "by head")), (1.6, 0.8, 0.8, 1))
    lanes.stage(Bar(0, 2, f"convolution over {block.conv:,} tokens", "latent", "conv"))
    if block.min_step:
        lanes.stage(Bar(3, 3, f"at least {block.min_step:g}", "chip", "min step"))
    _state(lanes, 3, (block.heads, block.head_dim, block.state), "decays by the time step, adds x at B, is read at C")
    lanes.stage(Bar(0, 3, "plus D x, × silu of a gate, RMSNorm", "chip-norm", "norm"))
    return _output(lanes, 3, block.heads * block.head_dim)


def short_convolution(block: ShortConv, region: Region) -> float:
    """Draws a convolution between two gates. Returns the y below it."""
    y = title(region, "Short convolution", (f"{block.channels:,} channels", "channels"))
    lanes = Lanes(region.at(y), (1, 1, 1))
    lanes.stage(*(Bar(i, i, name, "inner", "projections") for i, name in enumerate(("u", "B", "C"))))
    lanes.stage(Bar(0, 1, "B u", "chip", "gate before"))
    lanes.stage(Bar(0, 1, f"convolution over {block.conv:,} tokens", "latent", "conv"))
    lanes.stage(Bar(0, 2, "× C", "chip", "gate after"))
    return _output(lanes, 2, block.channels)


def _name(block: GatedDeltaNet | KDA | Mamba2) -> str:
    return str(stated(block)["kind"])


def _columns(region: Region, columns: Sequence[Column], shares: Sequence[float]) -> Lanes:
    """Draws a label for each column, and below it a box for each head, or words."""
    lanes = Lanes(region, shares)
    for i, (label, number, what) in enumerate(columns):
        x, width = lanes.columns[i]
        region.canvas.text(x + width / 2, region.y + 9, label, SMALL, width, "ink", "middle")
        if number:
            part = Region(region.canvas, x, region.y + 14, width, region.dim, region.place)
            lanes.taken(i, i, heads(part, number, number, what))
        else:
            region.canvas.text(x + width / 2, region.y + 24, what, SMALL, width, "faint", "middle")
            lanes.taken(i, i, region.y + 28)
    return lanes


def _state(lanes: Lanes, last: int, shape: tuple[int, int, int], change: str) -> None:
    sizes = " × ".join(f"{size:,}" for size in shape)
    lanes.stage(Bar(0, last, f"state {sizes}: {change}", "latent", "state"), badges=("state",))


def _output(lanes: Lanes, last: int, inner: int) -> float:
    lanes.stage(Bar(0, last, f"output {inner:,} → {lanes.region.dim:,}", "inner", "output"))
    return lanes.y
