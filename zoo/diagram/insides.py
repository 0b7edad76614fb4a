"""What is drawn inside a block: `inside` has a function for each kind, and draws another kind's name and description.
Each shape (head boxes, mask, latents, hourglass, experts, chips) fills a `Region` from its top and returns its end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import singledispatch
from math import gcd
from typing import NamedTuple

from zoo.blocks import (
    GLU,
    GQA,
    MLA,
    MLP,
    CompressedAttention,
    DenseAndMoE,
    FeedForward,
    MoE,
    NoPE,
    Router,
    SparseMLA,
)
from zoo.costs import Reach
from zoo.diagram.canvas import Canvas, text_width, wrap_text
from zoo.registry import Mixer, Spec

BIG, SMALL, TINY = 12.5, 10.0, 9.0  # font sizes
MASK_SIZE, STATE = 34.0, 18.0  # side of a mask, height of a state
MAX_HEADS, MAX_EXPERTS = 64, 512  # drawn one by one; larger numbers are only written


@dataclass(frozen=True)
class Region:
    """Where a block's inside is drawn: from (x, y) down, `width` wide, in a model of width `dim`."""

    canvas: Canvas
    x: float
    y: float
    width: float
    dim: int
    place: str  # of everything stated here, for Canvas.facts

    def at(self, y: float) -> Region:
        """The same region from `y` on."""
        return replace(self, y=y)

    def line(
        self, text: str, fact: str, size: float = SMALL, css_class: str = "ink", right: float = 0, left: float = 0
    ) -> float:
        """A line of text that keeps `left` and `right` of the region free; returns its width."""
        width, place = self.width - left - right, f"{self.place}.{fact}"
        return self.canvas.text(self.x + left, self.y, text, size, width, css_class, place=place)


class Chip(NamedTuple):
    """A short text in a rounded box."""

    text: str
    css_class: str = "chip"


@singledispatch
def inside(block: Spec, region: Region) -> float:
    """Draw a block's inside; returns the y below it."""
    return _described(region, block)


def _described(region: Region, block: Spec) -> float:
    """A block's kind and its description; returns the y below them."""
    y = region.y + BIG
    region.at(y).line(_kind(block), "kind", BIG, "strong")
    for line in wrap_text(block.describe(), SMALL, region.width):
        y += 14
        region.at(y).line(line, "description")
    return y + 4


@inside.register
def _(block: Mixer, region: Region) -> float:
    """A mixer without a picture of its own: its description, and a box for each state that it keeps."""
    y = _described(region, block)
    for state in block.cache_spec().state:
        shape = " × ".join(f"{size:,}" for size in state.shape)
        text = f"{state.name} state {shape}" + (", float32" if state.in_float32 else "")
        y += 5
        region.canvas.rect(region.x, y, region.width, STATE, "latent", 3)
        place = f"{region.place}.{state.name} state"
        region.canvas.text(
            region.x + region.width / 2, y + 12.5, text, TINY, region.width - 8, anchor="middle", place=place
        )
        y += STATE
    return y + 4


@inside.register
def _(block: GQA, region: Region) -> float:
    kind = _kind(block)
    shared = f" on {block.kv_heads:,} KV heads" if kind == "GQA" else " on one KV head" if kind == "MQA" else ""
    y = _attention_title(region, block, f"{block.heads:,} heads{shared}", f"each {block.head_dim:,} wide")
    y = _heads(region.at(y + 5), block.heads, block.kv_heads)
    norm = f"QK-norm per {block.qk_norm_over}" if block.qk_norm else ""
    known = {block.rope.describe(), block.reach.describe(), *block.scale_words()}
    options = [option for option in block.options() if option not in known and not option.startswith("QK-norm")]
    return _attention_chips(region.at(y + 7), block, norm, *options)


@inside.register
def _(block: DenseAndMoE, region: Region) -> float:
    y = inside(block.dense, region)
    return inside(block.routed, replace(region, y=y + 10, place=f"{region.place}.routed"))


@inside.register
def _(block: MLA, region: Region) -> float:
    widths = f"{block.nope_dim:,} + {block.rope_dim:,} rotary, values {block.v_dim:,}"
    y = _attention_title(region, block, f"{block.heads:,} heads", widths)
    source = f"latent {block.q_rank:,}" if block.q_rank else "full rank"
    target = f"queries {block.heads:,} × {block.nope_dim + block.rope_dim:,}"
    y = _projection(region.at(y + 6), source, "inner", target, "queries")
    source = f"latent {block.kv_rank:,} + key {block.rope_dim:,}"
    target = f"keys, values {block.heads:,} × {block.nope_dim + block.v_dim:,}"
    y = _projection(region.at(y + 5), source, "latent", target, "keys and values")
    options = [f"{block.indexer.k:,} tokens chosen by an indexer"] if isinstance(block, SparseMLA) else []
    options += [block.temperature.describe()] if block.temperature else []
    return _attention_chips(region.at(y + 7), block, "latents normed", *options)


@inside.register
def _(block: CompressedAttention, region: Region) -> float:
    widths = f"{block.nope_dim:,} + {block.rope_dim:,} rotary, keys are values"
    y = _attention_title(region, block, f"{block.heads:,} heads on one key", widths)
    target = f"queries {block.heads:,} × {block.head_dim:,}"
    y = _projection(region.at(y + 6), f"latent {block.q_rank:,}", "inner", target, "queries")
    if block.compressor:
        every = block.compressor.every
        source = f"{2 * every if block.compressor.overlap else every:,} tokens"
        target = f"entry {block.head_dim:,} per {every:,}"
        y = _projection(region.at(y + 5), source, "inner", target, "entries", kept="latent")
    target = f"output {block.groups:,} × {block.o_rank:,}"
    y = _projection(region.at(y + 5), f"{block.groups:,} groups of {block.group_dim:,}", "inner", target, "output")
    options = [f"{block.chosen:,} entries chosen by an indexer"] if block.chosen else []
    return _attention_chips(region.at(y + 7), block, "queries and keys normed", *options, "sinks")


@inside.register
def _(block: GLU | MLP, region: Region) -> float:
    y = _title(region, (block.act.describe(), "act"), (_widths(block, region.dim), "hidden"))
    y = _hourglass(region.at(y + 6), block.hidden)
    return _chips(region.at(y + 6), [Chip("biases")]) if block.bias else y


@inside.register
def _(block: MoE, region: Region) -> float:
    active = f"{block.router.k:,} of {block.experts:,} experts active"
    y = _title(region, (_kind(block), "kind"), (active, "experts"))
    y = _grid(region.at(y + 7), block.experts, *_example_choice(block.router, block.experts)) + 13
    region.at(y).line(f"each {_widths(block.expert, region.dim)}", "expert")
    if block.shared:
        y += 16
        region.canvas.rect(region.x, y - 8, 9, 9, "chosen", 1.5)
        region.at(y).line(f"shared by all: {_widths(block.shared, region.dim)}", "shared", left=15)
    experts = [each for each in (block.expert, block.shared) if each]
    acts = dict.fromkeys(part for each in experts for part in each.walk() if part.role == "act")
    labels = [Chip(text) for text in (*(act.describe() for act in acts), *block.router.describe().split(", "))]
    labels += [Chip(f"latent {block.latent:,}")] if block.latent else []
    return _chips(region.at(y + 7), labels + [Chip("biases")] * bool(getattr(block.expert, "bias", False)))


def _example_choice(router: Router, experts: int) -> tuple[int, list[int]]:
    """An example of a router's choice: the number of its groups, and k experts that it can choose together."""
    groups, keep = getattr(router, "groups", 1), getattr(router, "keep", 1)
    size, kept = experts // groups, _spread(keep, groups)
    return groups, [kept[i // size] * size + i % size for i in _spread(router.k, keep * size)]


def _spread(k: int, number: int) -> list[int]:
    """k different integers below `number`, by a stride near the golden ratio so that they show no pattern."""
    stride = round(number * 0.618)
    while gcd(stride, number) != 1:
        stride += 1
    return sorted((3 + i * stride) % number for i in range(k))


def _kind(block: Spec) -> str:
    return block.names()[0]


def _widths(block: FeedForward, dim: int) -> str:
    return f"{dim:,} → {block.width:,} → {dim:,}"


def _title(region: Region, title: tuple[str, str], detail: tuple[str, str]) -> float:
    """A title and a detail beside it, or below where it does not fit; each a (text, fact)."""
    y = region.y + BIG
    left = region.at(y).line(*title, BIG, "strong") + 8
    if left + text_width(detail[0], SMALL) > region.width:
        y, left = y + 15, 0
    region.at(y).line(*detail, left=left)
    return y


def _attention_title(region: Region, block: Mixer, heads: str, widths: str) -> float:
    """An attention block's kind, its heads and their widths, and which tokens a token sees."""
    right = MASK_SIZE + 8
    left = region.at(region.y + BIG).line(_kind(block), "kind", BIG, "strong", right) + 8
    region.at(region.y + BIG).line(heads, "heads", right=right, left=left)
    left = region.at(region.y + BIG + 17).line(widths, "widths", css_class="faint", right=right) + 8
    cache = block.cache_spec()
    reach = cache.reach
    seen = Chip(cache.describe(), "chip-window" if reach.limit and not cache.entries else "chip")
    _mask(region, reach)
    return max(_chips(region.at(region.y + BIG + 6), [seen], "window", right, left), region.y + MASK_SIZE)


def _attention_chips(region: Region, block: GQA | MLA | CompressedAttention, norm: str, *options: str) -> float:
    """An attention block's position encoding, norm, scale and options."""
    chips = [Chip(block.rope.describe(), "chip-nope" if isinstance(block.rope, NoPE) else "chip-rope")]
    chips += [Chip(norm, "chip-norm")] if norm else []
    scale = getattr(block, "scale", None)
    chips += [Chip(f"scale {scale**-2:.4g}^-1/2")] if scale else []
    return _chips(region, chips + [Chip(option) for option in options])


# Shapes.


def _mask(region: Region, reach: Reach) -> None:
    """In the top right corner, which tokens (columns) a token (row) sees: windows and chunks as if they were of three
    tokens."""
    canvas, x, cells = region.canvas, region.x + region.width - MASK_SIZE, 8
    side = (MASK_SIZE - 2) / cells
    css_class = canvas.marked("unseen", f"{region.place}.reach", reach.describe())
    canvas.rect(x, region.y, MASK_SIZE, MASK_SIZE, css_class, 2)
    small = reach.bounded(3)
    rows = ""
    for i in range(cells):
        first = next(j for j in range(i + 1) if small.sees(i, j))
        width = side * (i + 1 - first)
        rows += f"M{x + 1 + side * first} {region.y + 1 + side * i}h{width}v{side - 0.5}h-{width}z"
    canvas.path(rows, "seen-window" if reach.limit else "seen")


def _heads(region: Region, heads: int, kv_heads: int) -> float:
    """A box for each query head; below each group of them, a box for its key head and one for its value head."""
    if heads > MAX_HEADS:
        return region.y
    canvas, left, gap = region.canvas, 18.0, 3.0 if kv_heads < heads else 1.0
    pitch = min(13.0, (region.width - left - gap * (kv_heads - 1)) / heads)
    box, corner = (pitch - 1, 1) if pitch > 4 else (pitch * 0.8, 0)
    canvas.text(region.x, region.y + 8, "q", TINY, left, "faint")
    canvas.text(region.x, region.y + 21, "kv", TINY, left, "faint")
    per_group = heads // kv_heads
    for group in range(kv_heads):
        x = region.x + left + group * (per_group * pitch + gap)
        for i in range(per_group):
            canvas.rect(x + i * pitch, region.y, box, 9, "query", corner)
        for y in (region.y + 11.5, region.y + 18.5):
            canvas.rect(x, y, (per_group - 1) * pitch + box, 5.5, "kept", corner)
    return region.y + 24


def _projection(region: Region, source: str, css_class: str, target: str, fact: str, kept: str = "inner") -> float:
    """An arrow from a latent to what is computed from it, in a box of the class `kept`."""
    height, arrow = 18.0, 14.0
    first = (region.width - arrow) * 0.48
    second = region.width - first - arrow
    boxes = (0.0, first, source, css_class, "from"), (first + arrow, second, target, kept, "to")
    for left, width, text, box_class, end in boxes:
        x, place = region.x + left, f"{region.place}.{fact}.{end}"
        region.canvas.rect(x, region.y, width, height, box_class, 3)
        region.canvas.text(x + width / 2, region.y + 12.5, text, TINY, width - 6, anchor="middle", place=place)
    x, y = region.x + first, region.y + height / 2
    region.canvas.path(f"M{x + 2} {y}h{arrow - 6}", "branch")
    region.canvas.path(f"M{x + arrow - 1} {y}l-5 -3v6z", "tip")
    return region.y + height


def _hourglass(region: Region, hidden: int) -> float:
    """From the model's width to the hidden width and back, to scale."""
    height, widest = 20.0, max(hidden, region.dim)
    outer, inner = (region.width * width / widest / 2 for width in (region.dim, hidden))
    middle, y = region.x + region.width / 2, region.y
    region.canvas.path(
        f"M{middle - outer} {y}H{middle + outer}L{middle + inner} {y + height / 2}"
        f"L{middle + outer} {y + height}H{middle - outer}L{middle - inner} {y + height / 2}z",
        "wide",
    )
    ratio = f"× {hidden / region.dim:.3g}"
    region.canvas.text(middle, y + height / 2 + 3.5, ratio, TINY, region.width, anchor="middle")
    return y + height


def _grid(region: Region, experts: int, groups: int, chosen: list[int]) -> float:
    """A square for each expert, one group below another, the chosen ones filled."""
    if experts > MAX_EXPERTS:
        return region.y - 7
    size = experts // groups
    columns = min(size, 32)
    pitch = min(11.0, region.width / columns)
    height, gap = -(-size // columns) * pitch, 2.0 if groups > 1 else 0.0
    for expert in range(experts):
        group, index = divmod(expert, size)
        row, column = divmod(index, columns)
        x, y = region.x + column * pitch, region.y + group * (height + gap) + row * pitch
        region.canvas.rect(x, y, pitch - 1.6, pitch - 1.6, "chosen" if expert in chosen else "idle", 1.2)
    return region.y + groups * (height + gap) - gap


def _chips(region: Region, chips: list[Chip], fact: str = "chips", right: float = 0, left: float = 0) -> float:
    """Chips side by side, in as many lines as they need; `right` is kept free, and `left` of the first line."""
    x, y, height, end = region.x + left, region.y, 15.0, region.x + region.width - right
    place = f"{region.place}.{fact}"
    for text, css_class in chips:
        width = min(text_width(text, TINY) + 12, end - region.x)
        if x + width > end:
            x, y = region.x, y + height + 4
        region.canvas.rect(x, y, width, height, region.canvas.marked(css_class, place, text), 7)
        region.canvas.text(x + width / 2, y + 10.8, text, TINY, width - 12, anchor="middle", place=place)
        x += width + 5
    return y + height
