"""Small drawings of single blocks, in the diagrams' own shapes and colours."""

from __future__ import annotations

from collections.abc import Callable

import torch

from zoo.blocks import GLU, GQA, MLA, GroupedSigmoidTopK, MoE, RMSNorm, RoPE, SoftmaxTopK
from zoo.blocks.layer import PLACEMENTS, Placement
from zoo.core.forward_context import visible
from zoo.diagram.canvas import Canvas, css
from zoo.diagram.insides import SMALL, TINY, Region, inside
from zoo.registry import Block

PAD, WIDE = 12.0, 330.0
TOKENS, WINDOW, CELL = 12, 4, 13.0
PAIRS, PLACES, RADIUS = (0, 2, 5, 10), 9, 15.0  # of RoPE: pairs that are shown, and positions
STEP, BOX, TALL = 96.0, 84.0, 24.0  # of the way of a token
NORM = RMSNorm(1e-6)


def draw(name: str, says: str, prefix: str = "") -> str:
    """A drawing by its name, as SVG. `says` tells in words what it shows; every id begins with `prefix`."""
    return DRAWINGS[name](says).finish(prefix)


def _block(block: Block, dim: int) -> Callable[[str], Canvas]:
    """The inside of a block, as in the diagrams."""

    def made(says: str) -> Canvas:
        canvas = Canvas(WIDE, type(block).__name__, says, css())
        frame = canvas.rect(1, 1, WIDE - 2, 0, "ffn" if block.role == "ffn" else "attn", 8)
        bottom = inside(block, Region(canvas, PAD, PAD, WIDE - 2 * PAD, dim, "block")) + PAD
        frame.set("height", f"{bottom - 2:.1f}")
        canvas.height = bottom
        return canvas

    return made


def _head(says: str) -> Canvas:
    """One head, from a token's row to what it adds: three matrices, scores, their softmax, values."""
    tokens, cell = 6, 9.0
    canvas = Canvas(560, "One head", says, css())

    def grid(x: float, y: float, columns: int, look: str, words: str, lower: bool = False) -> None:
        for row in range(tokens):
            for column in range(columns):
                shown = "unseen" if lower and column > row else look
                canvas.rect(x + column * cell, y + row * cell, cell - 1.5, cell - 1.5, shown, 1.5)
        canvas.text(x + columns * cell / 2, y + tokens * cell + 11, words, TINY, 110, "faint", "middle")

    def arrow(x: float, y: float, to: float, down: float = 0) -> None:
        canvas.path(f"M{x} {y}H{x + 8}V{y + down}H{to - 5}", "branch")
        canvas.path(f"M{to - 1} {y + down}l-5 -3v6z", "tip")

    middle = 118.0
    grid(8, middle - 27, 5, "kind-full-0", "x")
    for i, (name, look) in enumerate((("q", "query"), ("k", "kept"), ("v", "kept"))):
        y = 20.0 + i * 84
        arrow(58, middle, 92, y + 27 - middle)
        canvas.rect(92, y + 13, 34, 28, "attn", 4)
        canvas.text(109, y + 31, f"W{name}", SMALL, 30, "strong", "middle")
        arrow(128, y + 27, 152)
        grid(154, y, 3, look, f"{name} = x W{name}")
    arrow(186, 47, 248, 34)
    arrow(186, 131, 248, -50)
    grid(250, 54, 6, "seen", "softmax(q kᵀ / √d)", lower=True)
    arrow(308, 81, 372, 60)
    arrow(186, 215, 372, -74)
    grid(374, 114, 3, "kept", "weighted values")
    arrow(406, 141, 430)
    canvas.rect(430, 127, 34, 28, "attn", 4)
    canvas.text(447, 145, "Wo", SMALL, 30, "strong", "middle")
    arrow(466, 141, 490)
    grid(492, 114, 5, "kind-full-0", "out")
    canvas.height = 262
    return canvas


def _masks(says: str) -> Canvas:
    """Who sees whom: everything before, and a window."""
    side = TOKENS * CELL
    canvas = Canvas(2 * side + 5 * PAD, "What a token sees", says, css())
    positions = torch.arange(TOKENS)
    for i, (window, words) in enumerate(((None, "full"), (WINDOW, f"window of {WINDOW}"))):
        left = PAD + i * (side + 3 * PAD)
        canvas.text(left, 14, words, SMALL, side, "strong")
        for row, seen in enumerate(visible(positions, positions, window).tolist()):
            for column, sees in enumerate(seen):
                look = ("seen" if window is None else "seen-window") if sees else "unseen"
                canvas.rect(left + column * CELL, 22 + row * CELL, CELL - 1.5, CELL - 1.5, look, 2)
        canvas.text(left, 36 + side, "rows: queries, columns: keys", TINY, side, "faint")
    canvas.height = side + 42
    return canvas


def _rope(says: str) -> Canvas:
    """Pairs of numbers at one position after another, as arrows."""
    pitch = 2 * RADIUS + 8
    canvas = Canvas(84 + PLACES * pitch, "Rotary position embedding", says, css())
    width, rope = 32, RoPE(1e2)
    table = rope.table(torch.arange(PLACES), width)
    assert table is not None
    for position in range(PLACES):
        x = 84 + position * pitch + RADIUS
        canvas.text(x, 12, str(position), TINY, pitch, "faint", "middle")
        for row, pair in enumerate(PAIRS):
            y = 24 + row * pitch + RADIUS
            across, up = (float(side[position, width // 2 + pair]) * (RADIUS - 3) for side in table)
            canvas.circle(x, y, RADIUS, "inner")
            canvas.path(f"M{x} {y}l{across} {-up}", "residual")
            canvas.circle(x + across, y - up, 2.5, "query")
    canvas.text(8, 12, "position", TINY, 70, "faint")
    for row, pair in enumerate(PAIRS):
        canvas.text(8, 27 + row * pitch + RADIUS, f"pair {pair} of {width // 2}", TINY, 74, "faint")
    canvas.height = 24 + len(PAIRS) * pitch
    return canvas


def _norms(says: str) -> Canvas:
    """A branch for each place a norm may stand in."""
    width = 150.0
    canvas = Canvas(len(PLACEMENTS) * width, "Where norms stand", says, css())
    for i, (name, put) in enumerate(PLACEMENTS.items()):
        _branch(canvas, i * width, name, put(NORM, GLU(1)))
    canvas.height = 250
    return canvas


def _branch(canvas: Canvas, left: float, name: str, branch: Placement) -> None:
    stream, block, top, bottom = left + 18, left + 42, 52.0, 236.0
    canvas.text(left + 8, 16, name, SMALL, 130, "strong")
    canvas.text(left + 8, 31, branch.formula, TINY, 140, "faint")
    on_sum = branch.placement == "post"
    inner = ["norm"] * ("f(norm" in branch.formula) + ["f"] + ["norm"] * branch.formula.startswith("x + norm")
    join = bottom - (48 if on_sum else 22)
    canvas.path(f"M{stream} {top - 10}V{bottom}", "residual")
    canvas.path(f"M{stream} {top + 4}H{block + 40}V{join}H{stream + 8}", "branch")
    y = top + 16 + (3 - len(inner)) * 17
    for each in inner:
        _box(canvas, block, y, each, 80)
        y += 36
    canvas.circle(stream, join, 7, "plus")
    canvas.path(f"M{stream - 3.5} {join}h7M{stream} {join - 3.5}v7", "branch")
    if on_sum:
        _box(canvas, left + 4, bottom - 34, "norm", 62)


def _box(canvas: Canvas, x: float, y: float, words: str, width: float) -> None:
    canvas.rect(x, y, width, 22, "norm" if words == "norm" else "ffn", 5)
    canvas.text(x + width / 2, y + 15, words, SMALL, width - 6, anchor="middle")


WAY = (
    ("text", "to be or not", "card"),
    ("token ids", "116 111 32 …", "card"),
    ("embedding", "a row for each", "table"),
    ("layers", "attention, ffn", "attn"),
    ("norm", "of the last row", "norm"),
    ("head", "a logit for each", "table"),
    ("softmax", "probabilities", "card"),
)


def _way(says: str) -> Canvas:
    """From text to the next token's probabilities."""
    canvas = Canvas(len(WAY) * STEP + 4, "The way of a token", says, css())
    for i, (name, does, look) in enumerate(WAY):
        x = 8 + i * STEP
        if i:
            canvas.path(f"M{x - STEP + BOX} {28}h{STEP - BOX - 5}", "branch")
            canvas.path(f"M{x - 1} 28l-5 -3v6z", "tip")
        if name == "layers":  # several, one behind the other
            for back in (6, 3):
                canvas.rect(x + back, 16 - back, BOX, TALL, look, 5)
        canvas.rect(x, 16, BOX, TALL, look, 5)
        canvas.text(x + BOX / 2, 32, name, SMALL, BOX - 6, "strong", "middle")
        canvas.text(x + BOX / 2, 56, does, TINY, BOX + 10, "faint", "middle")
    canvas.height = 66
    return canvas


DRAWINGS: dict[str, Callable[[str], Canvas]] = {
    "way": _way,
    "one-head": _head,
    "mha": _block(GQA(8, 8, 64, RoPE(5e5)), 512),
    "gqa": _block(GQA(8, 2, 64, RoPE(5e5)), 512),
    "mqa": _block(GQA(8, 1, 64, RoPE(5e5)), 512),
    "mla": _block(MLA(128, 1536, 512, 128, 64, 128, NORM, RoPE(1e4)), 7168),
    "masks": _masks,
    "rope": _rope,
    "glu": _block(GLU(14_336), 4096),
    "moe": _block(MoE(32, GLU(2880), SoftmaxTopK(4)), 2880),
    "grouped": _block(MoE(256, GLU(2048), GroupedSigmoidTopK(8, 8, 4, 2.5), shared=GLU(2048)), 7168),
    "norms": _norms,
}
