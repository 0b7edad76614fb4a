"""Draws the inside of attention in the order of computation: queries, keys and values; their norms and rotation; the
contents of the cache; the visible tokens; the output."""

from dataclasses import replace

from zoo.blocks import GQA, MLA, CompressedAttention, NoPE, SparseMLA
from zoo.diagram.canvas import LINE, SMALL, typeset, wrap_text
from zoo.diagram.region import BADGE, MASK, PAD, Bar, Lanes, Region, chips, heads, kind, mask, output, title
from zoo.registry import Mixer, stated

OF_SCORES = ("reach", "sinks", "cap")  # parts whose call-out numbers are drawn at the softmax


def grouped_query_attention(block: GQA, region: Region) -> float:
    """Draws queries, keys and values in three columns. Returns the y below them."""
    name = kind(block)
    shared = f" on {block.kv_heads:,} KV heads" if name not in ("MHA", "MQA") and block.kv_heads > 1 else ""
    shared = " on one KV head" if block.kv_heads == 1 else shared
    y = title(region, name, (f"{block.heads:,} heads{shared}", "heads"), (f"each {block.head_dim:,} wide", "widths"))
    lanes = Lanes(region.at(y), (2.2, 1, 1))
    said = {key: typeset(str(fact)) for key, fact in stated(block).items()}
    without_box = {key: text for key, text in said.items() if text and key not in ("kind", "heads")}

    def taken(*keys: str) -> list[str]:
        """Returns the texts of these facts, as far as the block states them, and marks them as drawn."""
        return [without_box.pop(key) for key in keys if key in without_box]

    own = _heads_of_columns(lanes, block)
    taken("keys_as_values", "window", "chunk", "reach", "scale")
    normed = 1 if "k" in own else 0  # last column with norm and rotation
    norms = [Bar(0, normed, text, "chip-norm", "norm") for text in taken("qk_norm")]
    norms += [Bar(2, 2, text, "chip-norm", "v norm") for text in taken("v_norm")]
    if norms:
        lanes.stage(*norms, badges=("qk_norm",) if block.qk_norm else ("v_norm",))
    taken("rope")
    lanes.stage(_position_bar(block, 0, normed), badges=("rope",))
    for text in taken("temperature"):
        lanes.stage(Bar(0, normed, text, "chip", "temperature"), badges=("temperature",))
    if elements := block.cache_spec().elements():
        lanes.stage(Bar(1, 2, f"KV cache: {elements:,} per token", "latent", "cache"))
    _attend(lanes, block, 2, [*([_scale(block.scale)] if block.scale else []), *taken("cap", "sinks")])
    for text in taken("gate"):
        lanes.stage(Bar(0, 2, text, "chip", "gate"), badges=("gate",))
    output(lanes, 2, block.heads * block.value_dim)
    options = [(text, "option") for text in without_box.values()]
    return chips(region.at(lanes.y + 8), options) if options else lanes.y


def _heads_of_columns(lanes: Lanes, block: GQA) -> set[str]:
    """Draws the heads of queries, keys and values. Returns the letters (q, k, v) of the projections that exist."""
    region = lanes.region
    own = {"q", "k", "v"} & {name for name, part in block.parts(region.dim).items() if part}
    for column, (letter, label) in enumerate({"q": "queries", "k": "keys", "v": "values"}.items()):
        x, width = lanes.columns[column]
        shown = label if letter in own else "= keys" if "k" in own else "shared"
        css_class = "faint" if letter in own else "ink"
        place = f"{region.place}.{letter}"
        region.canvas.text(x + width / 2, region.y + 9, shown, SMALL, width, css_class, "middle", place=place)
        box = replace(region, x=x, y=region.y + 14, width=width)
        number, css_class = (block.heads, "queries") if letter == "q" else (block.kv_heads, "keys")
        lanes.taken(column, column, heads(box, number, block.kv_heads, css_class))
    return own


def latent_attention(block: MLA, region: Region) -> float:
    """Draws queries, the rotary key and the latent in three columns. Returns the y below them."""
    shared = "rotary" if block.rope.encodes else "shared by all heads"
    widths = f"each {block.nope_dim:,} + {block.rope_dim:,} {shared}, values {block.v_dim:,}"
    y = title(region, kind(block), (f"{block.heads:,} heads", "heads"), (widths, "widths"))
    lanes = Lanes(region.at(y), (1.5, 1, 1.5))
    queries = Bar(0, 0, f"queries {block.heads:,} × {block.nope_dim + block.rope_dim:,}", "inner", "queries")
    source = Bar(0, 0, f"latent of queries {block.q_rank:,}", "inner", "queries.from") if block.q_rank else queries
    latent = Bar(2, 2, f"latent of keys, values {block.kv_rank:,}", "inner", "latent")
    lanes.stage(source, Bar(1, 1, f"key {block.rope_dim:,}", "inner", "key"), latent)
    norms = [Bar(i, i, type(block.norm).__name__, "chip-norm", "norm") for i in ((0, 2) if block.q_rank else (2,))]
    lanes.stage(*norms, badges=("qk_norm",) if block.q_rank else ())
    if block.q_rank:
        lanes.stage(queries)
    lanes.stage(_position_bar(block, 0, 1), badges=("rope",))
    if block.temperature:
        lanes.stage(Bar(0, 1, typeset(block.temperature.describe()), "chip", "temperature"), badges=("temperature",))
    lanes.stage(Bar(1, 2, f"KV cache: {block.cache_spec().elements():,} per token", "latent", "cache"))
    expanded = f"keys {block.heads:,} × {block.nope_dim:,}, values {block.heads:,} × {block.v_dim:,}"
    lanes.stage(Bar(2, 2, expanded, "inner", "expanded"))
    seen = ""
    if isinstance(block, SparseMLA):
        k, own = block.indexer.k, f"an indexer of {block.indexer.heads:,} heads"
        chosen = f"{k:,} tokens chosen by " + ("an earlier layer's indexer" if block.shares_choice else own)
        lanes.stage(Bar(0, 2, chosen, "chip-window", "chosen"), badges=("indexer",))
        seen = f"sees the {k:,} chosen tokens"
    _attend(lanes, block, 2, [_scale(block.scale)] if block.scale else [], seen)
    return output(lanes, 2, block.heads * block.v_dim)


def compressed_attention(block: CompressedAttention, region: Region) -> float:
    """Draws queries, the single key that is also the value, and the compressed entries. Returns the y below them."""
    y = title(
        region,
        kind(block) if block.compressor else "MQA",
        (f"{block.heads:,} heads on one key", "heads"),
        (f"each {block.head_dim:,} wide, {block.rope_dim:,} rotary, keys are values", "widths"),
    )
    entries = block.compressor
    lanes = Lanes(region.at(y), (1.4, 1.2, 1.4) if entries else (1.4, 1.2))
    last = 2 if entries else 1
    bars = [Bar(0, 0, f"latent of queries {block.q_rank:,}", "inner", "queries.from")]
    bars += [Bar(1, 1, f"key = value {block.head_dim:,}", "inner", "key")]
    if entries:
        every = 2 * entries.every if entries.overlap else entries.every
        bars += [Bar(2, 2, f"an entry of {every:,} tokens every {entries.every:,}", "inner", "entries")]
    lanes.stage(*bars)
    norms = [Bar(i, i, type(block.norm).__name__, "chip-norm", "norm") for i in range(last + 1)]
    lanes.stage(*norms, badges=("qk_norm",))
    lanes.stage(Bar(0, 0, f"queries {block.heads:,} × {block.head_dim:,}, normed", "inner", "queries"))
    lanes.stage(_position_bar(block, 0, last), badges=("rope",))
    kept = [Bar(1, 1, f"KV cache: last {block.window:,}", "latent", "cache")]
    kept += [Bar(2, 2, "KV cache: all entries", "latent", "entries kept")] if entries else []
    lanes.stage(*kept)
    if block.chosen:
        lanes.stage(Bar(2, 2, f"{block.chosen:,} entries chosen by an indexer", "chip-window", "chosen"))
    _attend(lanes, block, last, [typeset(str(stated(block)["sinks"]))])
    target = f"output in {block.groups:,} groups: {block.group_dim:,} → {block.o_rank:,}, all → {region.dim:,}"
    lanes.stage(Bar(0, last, target, "inner", "output"))
    return lanes.y


def _scale(scale: float) -> str:
    return typeset(f"scale {scale**-2:.6g}^-1/2")


def _position_bar(block: GQA | MLA | CompressedAttention, first: int, last: int) -> Bar:
    without = isinstance(block.rope, NoPE)
    return Bar(first, last, typeset(block.rope.describe()), "chip-nope" if without else "chip-rope", "rope")


def _attend(lanes: Lanes, block: Mixer, last: int, scores: list[str], chosen: str = "") -> None:
    """Draws the softmax over the visible tokens, with a picture of the mask. `chosen`: the visible tokens in words."""
    region, cache = lanes.region, block.cache_spec()
    _, width = lanes.span(0, last)
    is_limited = cache.entries or not cache.reach.is_full
    seen = chosen or (typeset(cache.describe()) if is_limited else "sees all earlier tokens")
    free = width - MASK - 26 - region.badges_width(OF_SCORES)
    lines = wrap_text(", ".join(scores), free)
    height = max(MASK + 10, LINE * (len(lines) + 2) + 2 * PAD)
    x, top = lanes.box(0, last, height)
    mask(replace(region, x=x + 6, y=top + (height - MASK) / 2), cache.reach)
    region.badge(OF_SCORES, x + width - BADGE - 4, top + height / 2)
    text = replace(region, x=x + MASK + 16, width=free)
    y = top + (height - LINE * (len(lines) + 2)) / 2 + 11.5
    region.canvas.text(text.x, y, "softmax of q · k, times v", SMALL, text.width, "faint")
    text.at(y + LINE).line(seen, "window", css_class="strong")
    css_class = region.canvas.with_fact("ink", f"{region.place}.scores", ", ".join(scores)) if scores else "ink"
    region.canvas.lines(text.x, y + 2 * LINE, lines, text.width, css_class)
