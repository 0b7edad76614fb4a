"""The tutorial on blocks: docs/blocks.md for readers of the repository, and a section of the page.

The text refers to drawings, which have the shapes and colours of the model diagrams. HTML comments mark the parts that
are generated from specs: the sentences on the users of a block, and the table of attention costs.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

import mistune
import torch

from benchmarks.analytic.models import one
from benchmarks.analytic.selection import matching, one_each
from benchmarks.output.report import DOCS, columns
from zoo.architectures import families
from zoo.blocks import GLU, GQA, MLA, GatedDeltaNet, GroupedSigmoidTopK, MoE, RMSNorm, RoPE, SoftmaxTopK
from zoo.blocks.layer import PLACEMENTS, Placement
from zoo.catalog import sizes
from zoo.cli.listing import used_names
from zoo.cli.tables import Format, render
from zoo.core.forward_context import visible
from zoo.costs import Full, Window, whole
from zoo.diagram.canvas import Canvas, stretch
from zoo.diagram.insides import inside
from zoo.diagram.palette import Theme
from zoo.diagram.region import Region
from zoo.registry import Block
from zoo.units import format_bytes, format_count

PACKAGED = Path(__file__).parent / "static" / "blocks.md"  # the text in an installed package (pyproject.toml)
SOURCE = PACKAGED if PACKAGED.is_file() else DOCS / "blocks.md"
USED = re.compile(r"(<!-- used: (.+) -->\n\*Who uses .+?:\*) .*")
COSTS = re.compile(r"(?<=<!-- costs -->\n)(\|.*\n)+")
COMMENT = re.compile(r"<!--.*?-->\n")
SCROLL_BOX = '<div class="{}" tabindex="0" role="group" aria-label="{}">{}</div>'  # scrollable by keyboard too
HEADING = re.compile(r"<h(\d)>(.*?)</h\1>")
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
IMAGES = re.compile(r'<p>((?:<img src="blocks/[\w-]+\.svg" alt="[^"]*" />\s*)+)</p>')
IMAGE = re.compile(r'<img src="blocks/([\w-]+)\.svg" alt="([^"]*)" />')
USERS = "<p><em>Who uses"  # the beginning of a paragraph on the users of a block
STYLE_SHEET = re.compile(r"<style[^>]*>(.*?)</style>", re.DOTALL)


@cache
def markdown(linked: Collection[str] = ()) -> str:
    """Returns the text of docs/blocks.md with its generated parts. The names of architectures in `linked` become
    links."""
    source = SOURCE.read_text(encoding="utf-8").strip()
    text = USED.sub(lambda found: f"{found[1]} {users(found[2], linked)}.", source)
    return COSTS.sub(lambda _: f"{costs()}\n", text)


def pictures() -> dict[str, str]:
    """Returns {file name in docs/blocks: SVG} for every drawing that the text names."""
    images = re.findall(r"!\[([^\]]*)\]\(blocks/([\w-]+)\.svg\)", markdown())
    return {f"{name}.svg": draw(name, description, theme="light") for description, name in images}


def html(shown: frozenset[str] = frozenset()) -> str:
    """Returns the section of the page: headings one level lower, drawings inline, wide content in boxes that scroll.

    The names of architectures in `shown`, which are on the page, become links.
    """
    text: str = mistune.create_markdown(escape=False, plugins=["table"])(COMMENT.sub("", markdown(shown)))
    text = HEADING.sub(_lower_heading, text)
    text = IMAGES.sub(lambda images: SCROLL_BOX.format("drawings", "Drawing", IMAGE.sub(_inline, images[1])), text)
    text = text.replace(USERS, USERS.replace("<p>", '<p class="used">'))
    text = TABLE.sub(lambda table: SCROLL_BOX.format("scroll", "Cost of attention", table[0]), text)
    return re.sub(r"<th(?=[ >])", '<th scope="col"', text.replace("<pre>", '<pre tabindex="0">'))


def heading_id(text: str) -> str:
    """Returns the id of a section of the text on the page."""
    return f"block-{re.sub(r'[^a-z]+', '-', text.lower()).strip('-')}"


def _lower_heading(match: re.Match[str]) -> str:
    level, text = int(match[1]), match[2]
    name = "blocks-title" if level == 1 else heading_id(text)
    return f'<h{level + 1} id="{name}">{text}</h{level + 1}>'


def _inline(match: re.Match[str]) -> str:
    return without_style(draw(match[1], match[2], f"block-{match[1]}-"))


def users(word: str, linked: Collection[str] = ()) -> str:
    """Lists the architectures that use a block, alias, option or norm placement, with the sizes if not all sizes do."""
    found = []
    for family, module in families().items():
        names = [name for name in module.SIZES if word in words(name)]
        if names:
            name = f'<a href="#{family}">{family}</a>' if family in linked else family
            found.append(name if len(names) == len(module.SIZES) else f"{name} ({', '.join(names)})")
    return ", ".join(found) or "none of these"


@cache
def words(name: str) -> frozenset[str]:
    """Returns the names that `users` finds in a preset: kinds of blocks, aliases, norm placements, options in use."""
    return frozenset(used_names(sizes()[name].spec))


def costs() -> str:
    """Returns a Markdown table of one layer's attention in each architecture, with a row for each kind of layer."""
    rows = []
    for model in map(one, one_each(matching())):
        for mixer, layers in Counter(layer.mixer for layer in model.spec.layers if layer.mixer).items():
            cache = mixer.cache_spec()
            row = {
                "model": model.name,
                "layers": layers,
                "attn": mixer.describe(),
                "params": mixer.params(model.spec.dim),
            }
            per_token = whole(cache.entry_growth(2)) if cache.entries else 2 * cache.elements()
            row |= {"state": cache.state_bytes(2), "bytes": per_token}
            rows.append(row | {"bytes_32k": cache.nbytes(32 * 1024, 2)})
    shown = columns(model="model", layers="layers", attn="attention") + columns(format_count, params="parameters")
    shown += columns(format_bytes, state="state") if any(row["state"] for row in rows) else []
    shown += columns(format_bytes, bytes="cache per token", bytes_32k="cache at 32k tokens")
    return render(rows, shown, Format.md)


Draw = Callable[[Canvas], None]
PAD, BLOCK_WIDTH = 12.0, 380.0
SMALL, TINY = 10.0, 9.0  # font sizes


def draw(name: str, description: str, prefix: str = "", theme: Theme = "auto") -> str:
    """Returns a drawing by its name, as SVG. Every id in it begins with `prefix`.

    `description` is for screen readers.
    """
    title, width, drawing = DRAWINGS[name]
    canvas = Canvas(width, title, description)
    if theme != "auto":  # an SVG file has a background of its own
        paper = canvas.rect(0, 0, width, 0, "paper")
    drawing(canvas)
    if theme != "auto":
        stretch(paper, canvas.height)
    return canvas.finish(prefix, theme)


def without_style(drawing: str) -> str:
    """Returns an SVG without its style sheet, for a page that includes this style sheet once for all drawings."""
    return STYLE_SHEET.sub("", drawing)


def _block(block: Block, dim: int) -> tuple[str, float, Draw]:
    """Returns the title, the width and the drawing function for the inside of a block, as in model diagrams."""

    def drawing(canvas: Canvas) -> None:
        frame = canvas.rect(1, 1, BLOCK_WIDTH - 2, 0, "ffn" if block.role == "ffn" else "attn", 8)
        canvas.height = inside(block, Region(canvas, PAD, PAD, BLOCK_WIDTH - 2 * PAD, dim, "block")) + PAD
        frame.set("height", f"{canvas.height - 2:.1f}")

    return type(block).__name__, BLOCK_WIDTH, drawing


STAGES = (  # stages of a forward pass: name, content, look
    ("text", "to be or not", "card"),
    ("token ids", "116 111 32 …", "card"),
    ("embedding", "a row per token", "table"),
    ("layers", "attention, ffn", "attn"),
    ("norm", "of the last row", "norm"),
    ("head", "logits", "table"),
    ("softmax", "probabilities", "card"),
)
STAGE_PITCH, STAGE_WIDTH = 96.0, 84.0


def _forward_pass(canvas: Canvas) -> None:
    """Draws the path from text to the probabilities of the next token."""
    for i, (name, content, look) in enumerate(STAGES):
        x = 8 + i * STAGE_PITCH
        if i:
            canvas.path(f"M{x - STAGE_PITCH + STAGE_WIDTH} {28}h{STAGE_PITCH - STAGE_WIDTH - 5}", "branch")
            canvas.path(f"M{x - 1} 28l-5 -3v6z", "tip")
        for shift in (6, 3, 0) if name == "layers" else (0,):  # layers: a stack of boxes
            canvas.rect(x + shift, 16 - shift, STAGE_WIDTH, 24, look, 5)
        canvas.text(x + STAGE_WIDTH / 2, 32, name, SMALL, STAGE_WIDTH - 6, "strong", "middle")
        canvas.text(x + STAGE_WIDTH / 2, 56, content, TINY, STAGE_WIDTH + 10, "faint", "middle")
    canvas.height = 66


def _one_head(canvas: Canvas) -> None:
    """Draws one attention head, from its input rows to its output rows: projections, scores, softmax, values."""
    tokens, cell = 6, 9.0

    def matrix(x: float, y: float, columns: int, look: str, label: str, causal: bool = False) -> None:
        for row in range(tokens):
            for column in range(columns):
                cell_look = "unseen" if causal and column > row else look
                canvas.rect(x + column * cell, y + row * cell, cell - 1.5, cell - 1.5, cell_look, 1.5)
        canvas.text(x + columns * cell / 2, y + tokens * cell + 11, label, TINY, 110, "faint", "middle")

    def weight(x: float, y: float, name: str) -> None:
        canvas.rect(x, y, 34, 28, "attn", 4)
        canvas.text(x + 17, y + 18, name, SMALL, 30, "strong", "middle")

    def arrow(x: float, y: float, to: float, down: float = 0) -> None:
        canvas.path(f"M{x} {y}H{x + 8}V{y + down}H{to - 5}", "branch")
        canvas.path(f"M{to - 1} {y + down}l-5 -3v6z", "tip")

    middle = 118.0
    matrix(8, middle - 27, 5, "reach-full", "x")
    for i, (name, look) in enumerate((("q", "query"), ("k", "kept"), ("v", "kept"))):
        y = 20.0 + i * 84
        arrow(58, middle, 92, y + 27 - middle)
        weight(92, y + 13, f"W{name}")
        arrow(128, y + 27, 152)
        matrix(154, y, 3, look, f"{name} = x W{name}")
    arrow(186, 47, 248, 34)
    arrow(186, 131, 248, -50)
    matrix(250, 54, 6, "seen", "softmax(q kᵀ / √d)", causal=True)
    arrow(308, 81, 372, 60)
    arrow(186, 215, 372, -74)
    matrix(374, 114, 3, "kept", "weighted values")
    arrow(406, 141, 430)
    weight(430, 127, "Wo")
    arrow(466, 141, 490)
    matrix(492, 114, 5, "reach-full", "out")
    canvas.height = 262


MASK_TOKENS, MASK_WINDOW, MASK_CELL = 12, 4, 13.0
MASK_SIDE = MASK_TOKENS * MASK_CELL


def _masks(canvas: Canvas) -> None:
    """Draws the keys that each query sees, in full and in windowed attention."""
    positions = torch.arange(MASK_TOKENS)
    for i, reach in enumerate((Full(), Window(MASK_WINDOW))):
        left = PAD + i * (MASK_SIDE + 3 * PAD)
        label = "full" if reach.limit is None else f"window of {reach.limit}"
        canvas.text(left, 14, label, SMALL, MASK_SIDE, "strong")
        for row, mask in enumerate(visible(positions, positions, reach).tolist()):
            for column, sees in enumerate(mask):
                look = ("seen" if reach.limit is None else "seen-window") if sees else "unseen"
                x, y = left + column * MASK_CELL, 22 + row * MASK_CELL
                canvas.rect(x, y, MASK_CELL - 1.5, MASK_CELL - 1.5, look, 2)
        canvas.text(left, 36 + MASK_SIDE, "rows: queries, columns: keys", TINY, MASK_SIDE, "faint")
    canvas.height = MASK_SIDE + 42


ROPE_PAIRS, ROPE_POSITIONS, ROPE_DIM, RADIUS = (0, 2, 5, 10), 9, 32, 15.0
ROPE_PITCH = 2 * RADIUS + 8


def _rope(canvas: Canvas) -> None:
    """Draws pairs of elements as arrows, at consecutive positions."""
    table = RoPE(1e2).table(torch.arange(ROPE_POSITIONS), ROPE_DIM)
    assert table is not None
    for position in range(ROPE_POSITIONS):
        x = 84 + position * ROPE_PITCH + RADIUS
        canvas.text(x, 12, str(position), TINY, ROPE_PITCH, "faint", "middle")
        for row, pair in enumerate(ROPE_PAIRS):
            y = 24 + row * ROPE_PITCH + RADIUS
            across, up = (float(side[position, ROPE_DIM // 2 + pair]) * (RADIUS - 3) for side in table)
            canvas.circle(x, y, RADIUS, "inner")
            canvas.path(f"M{x} {y}l{across} {-up}", "residual")
            canvas.circle(x + across, y - up, 2.5, "query")
    canvas.text(8, 12, "position", TINY, 70, "faint")
    for row, pair in enumerate(ROPE_PAIRS):
        canvas.text(8, 27 + row * ROPE_PITCH + RADIUS, f"pair {pair} of {ROPE_DIM // 2}", TINY, 74, "faint")
    canvas.height = 24 + len(ROPE_PAIRS) * ROPE_PITCH


NORM = RMSNorm(1e-6)
PLACED = {name: placed for name, place in PLACEMENTS.items() if not (placed := place(NORM, GLU(1))).stream_spec}
BRANCH_WIDTH = 150.0


def _norms(canvas: Canvas) -> None:
    """Draws a branch for each norm placement with one residual stream."""
    for i, (name, branch) in enumerate(PLACED.items()):
        _branch(canvas, i * BRANCH_WIDTH, name, branch)
    canvas.height = 250


def _branch(canvas: Canvas, left: float, name: str, branch: Placement) -> None:
    def box(x: float, y: float, label: str, width: float) -> None:
        canvas.rect(x, y, width, 22, "norm" if label == "norm" else "ffn", 5)
        canvas.text(x + width / 2, y + 15, label, SMALL, width - 6, anchor="middle")

    stream, block, top, bottom = left + 18, left + 42, 52.0, 236.0
    canvas.text(left + 8, 16, name, SMALL, 130, "strong")
    canvas.text(left + 8, 31, branch.formula, TINY, 140, "faint")
    post_norm = branch.placement == "post"
    before, after = (branch.placement in kinds for kinds in (("pre", "sandwich"), ("olmo", "sandwich")))
    boxes = ["norm"] * before + ["f"] + ["norm"] * after
    join = bottom - (48 if post_norm else 22)
    canvas.path(f"M{stream} {top - 10}V{bottom}", "residual")
    canvas.path(f"M{stream} {top + 4}H{block + 40}V{join}H{stream + 8}", "branch")
    for i, label in enumerate(boxes):
        box(block, top + 16 + (3 - len(boxes)) * 17 + i * 36, label, 80)
    canvas.circle(stream, join, 7, "plus")
    canvas.path(f"M{stream - 3.5} {join}h7M{stream} {join - 3.5}v7", "branch")
    if post_norm:
        box(left + 4, bottom - 34, "norm", 62)


DRAWINGS: dict[str, tuple[str, float, Draw]] = {  # name -> title, width, drawing function
    "forward-pass": ("A forward pass", len(STAGES) * STAGE_PITCH + 4, _forward_pass),
    "one-head": ("One head", 560, _one_head),
    "mha": _block(GQA(8, 8, 64, RoPE(5e5)), 512),
    "gqa": _block(GQA(8, 2, 64, RoPE(5e5)), 512),
    "mqa": _block(GQA(8, 1, 64, RoPE(5e5)), 512),
    "mla": _block(MLA(128, 1536, 512, 128, 64, 128, NORM, RoPE(1e4)), 7168),
    "masks": ("Visible tokens", 2 * MASK_SIDE + 5 * PAD, _masks),
    "rope": ("Rotary position embedding", 84 + ROPE_POSITIONS * ROPE_PITCH, _rope),
    "glu": _block(GLU(14_336), 4096),
    "moe": _block(MoE(32, GLU(2880), SoftmaxTopK(4)), 2880),
    "grouped": _block(MoE(256, GLU(2048), GroupedSigmoidTopK(8, 8, 4, 2.5), shared=GLU(2048)), 7168),
    "state": _block(GatedDeltaNet(16, 32, 128, 128, 4, NORM), 2048),
    "norms": ("Norm placements", len(PLACED) * BRANCH_WIDTH, _norms),
}
