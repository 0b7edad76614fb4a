"""What is drawn inside a block: one function a kind. A kind without one is told in its own words."""

from __future__ import annotations

from functools import singledispatch
from math import gcd

from zoo.blocks import GLU, GQA, MLA, GroupedSigmoidTopK, MoE, NoPE, Router
from zoo.blocks.gqa import aliases
from zoo.diagram.canvas import text_width, wrapped
from zoo.diagram.shapes import BIG, GLYPH, SMALL, Chip, Room, chips, flow, grid, heads, hourglass, mask
from zoo.registry import Mixer, Spec


@singledispatch
def inside(block: Spec, room: Room) -> float:
    """Draw a block's inside; returns the y below it."""
    y = room.y + BIG
    room.down(y).line(type(block).__name__, "kind", BIG, "strong")
    for line in wrapped(block.describe(), SMALL, room.width):
        y += 14
        room.down(y).line(line, "words")
    return y + 4


@inside.register
def _(block: GQA, room: Room) -> float:
    kind = _kind(block)
    shared = f" on {block.kv_heads:,} KV heads" if kind == "GQA" else " on one KV head" if kind == "MQA" else ""
    y = _headline(room, block, f"{block.heads:,} heads{shared}", f"each {block.head_dim:,} wide")
    y = heads(room.down(y + 5), block.heads, block.kv_heads)
    told = [_position(block.rope)]
    told += [Chip(f"QK-norm per {block.qk_norm_over}", "chip-norm")] if block.qk_norm else []
    told += _scale(block.scale)
    told += [Chip("biases")] * block.bias + [Chip("sinks")] * block.sinks
    return chips(room.down(y + 7), told)


@inside.register
def _(block: MLA, room: Room) -> float:
    widths = f"{block.nope_dim:,} + {block.rope_dim:,} rotary, values {block.v_dim:,}"
    y = _headline(room, block, f"{block.heads:,} heads", widths)
    source = f"latent {block.q_rank:,}" if block.q_rank else "full rank"
    made = f"queries {block.heads:,} × {block.nope_dim + block.rope_dim:,}"
    y = flow(room.down(y + 6), source, "inner", made, "queries")
    source = f"latent {block.kv_rank:,} + key {block.rope_dim:,}"
    made = f"keys, values {block.heads:,} × {block.nope_dim + block.v_dim:,}"
    y = flow(room.down(y + 5), source, "latent", made, "keys and values")
    return chips(room.down(y + 7), [_position(block.rope), Chip("latents normed", "chip-norm"), *_scale(block.scale)])


@inside.register
def _(block: GLU, room: Room) -> float:
    y = _titled(room, (block.act.describe(), "act"), (_shape(block, room.dim), "hidden"))
    y = hourglass(room.down(y + 6), block.hidden)
    return chips(room.down(y + 6), [Chip("biases")]) if block.bias else y


@inside.register
def _(block: MoE, room: Room) -> float:
    chosen = f"{block.router.k:,} of {block.experts:,} experts active"
    y = _titled(room, (_kind(block), "kind"), (chosen, "experts"))
    y = grid(room.down(y + 7), block.experts, *choice(block.router, block.experts)) + 13
    room.down(y).line(f"each {_shape(block.expert, room.dim)}", "expert")
    if block.shared:
        y += 16
        room.canvas.rect(room.x, y - 8, 9, 9, "chosen", 1.5)
        room.down(y).line(f"shared by all: {_shape(block.shared, room.dim)}", "shared", at=15)
    told = [Chip(act.describe()) for act in dict.fromkeys(each.act for each in (block.expert, block.shared) if each)]
    told += [Chip(words) for words in block.router.describe().split(", ")]
    told += [Chip("biases")] * block.expert.bias
    return chips(room.down(y + 7), told)


@singledispatch
def choice(router: Router, experts: int) -> tuple[int, list[int]]:
    """An example of what a router does: the number of groups, and k experts that it may choose together."""
    return 1, _spread(router.k, experts)


@choice.register
def _(router: GroupedSigmoidTopK, experts: int) -> tuple[int, list[int]]:
    size = experts // router.groups
    kept = _spread(router.keep, router.groups)
    within = _spread(router.k, router.keep * size)
    return router.groups, [kept[i // size] * size + i % size for i in within]


def _spread(k: int, among: int) -> list[int]:
    """k different numbers below `among`, by a stride near the golden ratio: what is chosen has no order."""
    stride = round(among * 0.618)
    while gcd(stride, among) != 1:
        stride += 1
    return sorted((3 + i * stride) % among for i in range(k))


def _kind(block: Spec) -> str:
    return next(word for word in aliases(block) if word != "SWA")


def _shape(block: GLU, dim: int) -> str:
    return f"{dim:,} → {block.hidden:,} → {dim:,}"


def _position(rope: Spec) -> Chip:
    return Chip(rope.describe(), "chip-nope" if isinstance(rope, NoPE) else "chip-rope")


def _scale(scale: float | None) -> list[Chip]:
    return [Chip(f"scale {scale**-2:.4g}^-1/2")] if scale else []


def _titled(room: Room, title: tuple[str, str], beside: tuple[str, str]) -> float:
    """A title, and beside it, or below where it does not fit, what it comes to; each with its place."""
    y = room.y + BIG
    at = room.down(y).line(*title, BIG, "strong") + 8
    if at + text_width(beside[0], SMALL) > room.width:
        y, at = y + 15, 0
    room.down(y).line(*beside, at=at)
    return y


def _headline(room: Room, block: Mixer, shared: str, widths: str) -> float:
    """A mixer's kind and heads, their widths, and which tokens a token sees."""
    free = GLYPH + 8
    at = room.down(room.y + BIG).line(_kind(block), "kind", BIG, "strong", less=free) + 8
    room.down(room.y + BIG).line(shared, "heads", less=free, at=at)
    at = room.down(room.y + BIG + 17).line(widths, "widths", look="faint", less=free) + 8
    window = block.cache_spec().window
    seen = Chip(f"window {window}", "chip-window") if window else Chip("full")
    mask(room, seen.words, windowed=window is not None)
    return max(chips(room.down(room.y + BIG + 6), [seen], "window", free, at), room.y + GLYPH)
