"""What is drawn inside a block: one function a kind. A kind without one is told in its own words.

Each draws into a `Room` from its top and says where it ended.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import singledispatch
from itertools import islice

from zoo.blocks import GLU, GQA, MLA, GroupedSigmoidTopK, MoE, NoPE, Router
from zoo.diagram.canvas import Canvas, text_width, wrapped
from zoo.registry import Mixer, Spec
from zoo.remake import points

BIG, SMALL, TINY = 12.5, 10.0, 9.0  # font sizes
GLYPH = 34.0
MOST_HEADS, MOST_EXPERTS = 64, 512  # drawn one by one; more are told in figures alone


@dataclass(frozen=True)
class Room:
    """Where a block's inside may be drawn: from (x, y) down, `width` wide, beside a residual stream of `dim`."""

    canvas: Canvas
    x: float
    y: float
    width: float
    dim: int
    place: str  # of what is said here, for Canvas.facts

    def down(self, y: float) -> Room:
        """The same from `y` on."""
        return replace(self, y=y)

    def line(
        self, words: str, fact: str, size: float = SMALL, look: str = "ink", less: float = 0, at: float = 0
    ) -> float:
        """A line of text `at` right of the left edge; returns its width. `less` of the width is kept free."""
        room = self.width - less - at
        return self.canvas.text(
            self.x + at, self.y, words, size, room, look, fact=f"{self.place}.{fact}" if fact else ""
        )


@singledispatch
def inside(block: Spec, room: Room) -> float:
    """Draw a block's inside; returns the y below it."""
    y = room.y
    room.down(y + BIG).line(type(block).__name__, "kind", BIG, "strong")
    y += BIG
    for line in wrapped(block.words(), SMALL, room.width):
        y += 14
        room.down(y).line(line, "words")
    return y + 4


@inside.register
def _(block: GQA, room: Room) -> float:
    kind = next(word for word in points(block) if word != "SWA")
    shared = f" on {block.kv_heads:,} KV heads" if kind == "GQA" else " on one KV head" if kind == "MQA" else ""
    y = _headline(room, block, kind, f"{block.heads:,} heads{shared}", f"each {block.head_dim:,} wide")
    y = _heads(room.down(y + 5), block.heads, block.kv_heads)
    chips = _position(block.rope)
    chips += [(f"QK-norm per {block.qk_norm_over}", "chip-norm")] if block.qk_norm else []
    chips += [(f"scale {block.scale**-2:.4g}^-1/2", "chip")] if block.scale else []
    chips += [("biases", "chip")] * block.bias + [("sinks", "chip")] * block.sinks
    return _chips(room.down(y + 7), chips)


@inside.register
def _(block: MLA, room: Room) -> float:
    widths = f"{block.nope_dim:,} + {block.rope_dim:,} rotary, values {block.v_dim:,}"
    y = _headline(room, block, "MLA", f"{block.heads:,} heads", widths)
    queries = f"latent {block.q_rank:,}" if block.q_rank else "full rank"
    wide = block.nope_dim + block.rope_dim
    y = _flow(room.down(y + 6), queries, "inner", f"queries {block.heads:,} × {wide:,}", "queries")
    keys = f"keys, values {block.heads:,} × {block.nope_dim + block.v_dim:,}"
    y = _flow(room.down(y + 5), f"latent {block.kv_rank:,} + key {block.rope_dim:,}", "latent", keys, "latent")
    chips = _position(block.rope)
    chips += [(f"scale {block.scale**-2:.4g}^-1/2", "chip")] if block.scale else []
    return _chips(room.down(y + 7), chips)


@inside.register
def _(block: GLU, room: Room) -> float:
    y = _titled(room, block.act.words(), _shape(block, room.dim), "act", "hidden")
    y = _hourglass(room.down(y + 6), block.hidden)
    return _chips(room.down(y + 6), [("biases", "chip")]) if block.bias else y


@inside.register
def _(block: MoE, room: Room) -> float:
    router = block.router
    y = _titled(room, "MoE", f"{router.k:,} of {block.experts:,} experts active", "kind", "experts")
    y = _grid(room.down(y + 7), block.experts, *choice(router, block.experts))
    y += 13
    room.down(y).line(f"each {_shape(block.expert, room.dim)}", "expert")
    if block.shared:
        y += 16
        room.canvas.rect(room.x, y - 8, 9, 9, "chosen", 1.5)
        room.down(y).line(f"shared by all: {_shape(block.shared, room.dim)}", "shared", at=15)
    chips = [(act.words(), "chip") for act in dict.fromkeys(each.act for each in (block.expert, block.shared) if each)]
    chips += [(words, "chip") for words in router.words().split(", ")]
    chips += [("biases", "chip")] * block.expert.bias
    return _chips(room.down(y + 7), chips)


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
    """k different numbers below `among`, not in a row: what is chosen has no order."""
    stride = next(step for step in range(max(1, round(among * 0.618)), 2 * among + 2) if _coprime(step, among))
    return sorted((3 + i * stride) % among for i in range(k))


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1


def _shape(block: GLU, dim: int) -> str:
    return f"{dim:,} → {block.hidden:,} → {dim:,}"


def _position(rope: Spec) -> list[tuple[str, str]]:
    return [(rope.words(), "chip-nope" if isinstance(rope, NoPE) else "chip-rope")]


def _titled(room: Room, title: str, beside: str, *facts: str) -> float:
    """A title, and beside it, or below where it does not fit, what it comes to."""
    end = room.down(room.y + BIG).line(title, facts[0], BIG, "strong") + 8
    if end + text_width(beside, SMALL) <= room.width:
        room.down(room.y + BIG).line(beside, facts[1], at=end)
        return room.y + BIG
    room.down(room.y + BIG + 15).line(beside, facts[1])
    return room.y + BIG + 15


def _headline(room: Room, block: Mixer, title: str, heads: str, widths: str) -> float:
    """A mixer's title and heads, and right of them which tokens a token sees."""
    free = GLYPH + 8
    end = room.down(room.y + BIG).line(title, "kind", BIG, "strong", less=free) + 8
    room.down(room.y + BIG).line(heads, "heads", less=free, at=end)
    at = room.down(room.y + BIG + 17).line(widths, "widths", look="faint", less=free) + 8
    window = block.stored().window
    seen = f"window {window}" if window else "full"
    x = room.x + room.width - GLYPH
    cells, across = 8, 3 if window else 8
    side = (GLYPH - 2) / cells
    place = f"{room.place}.window"
    room.canvas.rect(x, room.y, GLYPH, GLYPH, room.canvas.marked("unseen", place, seen), 2)
    steps = "".join(
        f"M{x + 1 + side * max(0, i - across + 1)} {room.y + 1 + side * i}"
        f"h{side * min(i + 1, across)}v{side - 0.5}h-{side * min(i + 1, across)}z"
        for i in range(cells)
    )
    room.canvas.path(steps, "seen-window" if window else "seen")
    chips = [(seen, "chip-window" if window else "chip")]
    return max(_chips(room.down(room.y + BIG + 6), chips, "window", free, at), room.y + GLYPH)


def _heads(room: Room, heads: int, kv_heads: int) -> float:
    """A box for each query head, and below them one each for the key and the value that they share."""
    if heads > MOST_HEADS:
        return room.y
    left, gap = 18.0, 3.0 if kv_heads < heads else 1.0
    pitch = min(13.0, (room.width - left - gap * (kv_heads - 1)) / heads)
    per_group, bar = heads // kv_heads, max(pitch - (1 if pitch > 4 else 0.6), pitch * 0.6)
    for row, (label, y) in enumerate({"q": room.y, "kv": room.y + 11}.items()):
        room.canvas.text(room.x, y + 8 + row * 2, label, TINY, left, "faint")
    for group in range(kv_heads):
        x = room.x + left + group * (per_group * pitch + gap)
        for i in range(per_group):
            room.canvas.rect(x + i * pitch, room.y, bar, 9, "query", 1 if pitch > 4 else 0)
        whole = (per_group - 1) * pitch + bar
        for y in (room.y + 11.5, room.y + 18.5):
            room.canvas.rect(x, y, whole, 5.5, "kept", 1 if pitch > 4 else 0)
    return room.y + 24


def _flow(room: Room, source: str, look: str, target: str, fact: str) -> float:
    """A latent and what is made from it."""
    height, arrow = 18.0, 14.0
    first = (room.width - arrow) * 0.48
    boxes = ((0.0, first, source, look), (first + arrow, room.width - first - arrow, target, "inner"))
    for (at, width, words, box), part in zip(boxes, ("from", "to"), strict=True):
        room.canvas.rect(room.x + at, room.y, width, height, box, 3)
        middle = room.x + at + width / 2
        place = f"{room.place}.{fact}.{part}"
        room.canvas.text(middle, room.y + 12.5, words, TINY, width - 6, anchor="middle", fact=place)
    x, y = room.x + first, room.y + height / 2
    room.canvas.path(f"M{x + 2} {y}h{arrow - 6}", "branch")
    room.canvas.path(f"M{x + arrow - 1} {y}l-5 -3v6z", "tip")
    return room.y + height


def _hourglass(room: Room, hidden: int) -> float:
    """From the width of the stream to that of the hidden numbers, and back."""
    height, most = 20.0, max(hidden, room.dim)
    outer, inner = (room.width * width / most / 2 for width in (room.dim, hidden))
    middle, y = room.x + room.width / 2, room.y
    room.canvas.path(
        f"M{middle - outer} {y}H{middle + outer}L{middle + inner} {y + height / 2}"
        f"L{middle + outer} {y + height}H{middle - outer}L{middle - inner} {y + height / 2}z",
        "wide",
    )
    room.canvas.text(middle, y + height / 2 + 3.5, f"× {hidden / room.dim:.3g}", TINY, room.width, anchor="middle")
    return y + height


def _grid(room: Room, experts: int, groups: int, chosen: list[int]) -> float:
    """A square for each expert, group by group, those filled that one token goes to."""
    if experts > MOST_EXPERTS:
        return room.y - 7
    size = -(-experts // groups)
    across = min(size, 32)
    pitch = min(11.0, room.width / across)
    rows = -(-size // across)
    picked, gap = set(chosen), 2.0 if groups > 1 else 0.0
    y = room.y
    ids = iter(range(experts))
    for _ in range(groups):
        members = list(islice(ids, size))
        for place, expert in enumerate(members):
            x, row = room.x + place % across * pitch, y + place // across * pitch
            room.canvas.rect(x, row, pitch - 1.6, pitch - 1.6, "chosen" if expert in picked else "idle", 1.2)
        y += rows * pitch + gap
    return y - gap


def _chips(room: Room, chips: list[tuple[str, str]], fact: str = "says", less: float = 0, at: float = 0) -> float:
    """Words in boxes, side by side as far as there is room; `less` of it is kept free, the first line begins `at`."""
    x, y, height, end = room.x + at, room.y, 15.0, room.x + room.width - less
    for words, look in chips:
        width = min(text_width(words, TINY) + 12, end - room.x)
        if x + width > end:
            x, y = room.x, y + height + 4
        place = f"{room.place}.{fact}"
        room.canvas.rect(x, y, width, height, room.canvas.marked(look, place, words), 7)
        room.canvas.text(x + 6, y + 10.8, words, TINY, width - 12, fact=place)
        x += width + 5
    return y + height
