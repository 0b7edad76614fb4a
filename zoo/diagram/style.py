"""How the diagrams look: one palette for light and one for dark, and a rule for each class.

An embedding page restyles them by setting the variables, `--zoo-ink` and so on, on `.zoo-diagram`. Each rule names its
light colour first, for programs that do not know variables.
"""

from __future__ import annotations

import re

FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans","Liberation Sans",Arial,sans-serif'

# name -> (light, dark)
PALETTE = {
    "paper": ("#ffffff", "#11151c"),
    "card": ("#f6f7f9", "#191f29"),
    "edge": ("#d3d8e0", "#343d4b"),
    "ink": ("#1a222e", "#e9edf3"),
    "faint": ("#566170", "#a2adbc"),
    "line": ("#3d4858", "#b4bfcd"),
    "attn": ("#e2ecfb", "#182a45"),
    "attn-edge": ("#3a70c4", "#6a9eea"),
    "ffn": ("#e0f3e4", "#15301e"),
    "ffn-edge": ("#2c8a4b", "#55b878"),
    "norm": ("#fdf0cc", "#382e12"),
    "norm-edge": ("#b98200", "#d6a630"),
    "table": ("#eeebf9", "#272243"),
    "table-edge": ("#7565c2", "#9c8de8"),
    "kept": ("#d9622b", "#ef8b51"),
    "rope": ("#f1e8fa", "#2f2043"),
    "rope-edge": ("#8a57c4", "#b78ae8"),
    "window": ("#d9f1f1", "#0f3033"),
    "window-edge": ("#0d878c", "#3fbcc0"),
    "full-0": ("#5a6b86", "#8b9bb5"),
    "full-1": ("#aab6c8", "#56657d"),
    "full-2": ("#2f3b50", "#c9d3e2"),
    "window-0": ("#14969b", "#2fb0b5"),
    "window-1": ("#7fcfd1", "#1d6c70"),
    "window-2": ("#0a5f63", "#8adfe2"),
    "differs": ("#c8105f", "#ff6fae"),
}

# class -> declarations; @name is a colour of the palette
RULES = {
    "paper": "fill:@paper",
    "card": "fill:@card;stroke:@edge",
    "ink": "fill:@ink",
    "faint": "fill:@faint",
    "strong": "fill:@ink;font-weight:600",
    "attn": "fill:@attn;stroke:@attn-edge",
    "ffn": "fill:@ffn;stroke:@ffn-edge",
    "norm": "fill:@norm;stroke:@norm-edge",
    "table": "fill:@table;stroke:@table-edge",
    "tied": "stroke-dasharray:4 3",
    "ghost": "fill:none;stroke:@edge;stroke-dasharray:3 3",
    "inner": "fill:@paper;stroke:@edge",
    "latent": "fill:@paper;stroke:@kept;stroke-width:1.5",
    "query": "fill:@attn-edge",
    "kept": "fill:@kept",
    "idle": "fill:none;stroke:@ffn-edge;stroke-opacity:.55",
    "chosen": "fill:@ffn-edge",
    "wide": "fill:@ffn-edge;fill-opacity:.25",
    "unseen": "fill:@paper;stroke:@edge",
    "seen": "fill:@attn-edge",
    "seen-window": "fill:@window-edge",
    "chip": "fill:@paper;stroke:@edge",
    "chip-rope": "fill:@rope;stroke:@rope-edge",
    "chip-nope": "fill:@paper;stroke:@rope-edge;stroke-dasharray:3 2",
    "chip-window": "fill:@window;stroke:@window-edge",
    "chip-norm": "fill:@norm;stroke:@norm-edge",
    "residual": "fill:none;stroke:@line;stroke-width:2.5",
    "rule": "fill:none;stroke:@edge",
    "branch": "fill:none;stroke:@line;stroke-width:1.3",
    "tip": "fill:@line",
    "plus": "fill:@card;stroke:@line;stroke-width:1.5",
    "track": "fill:@edge;fill-opacity:.6",
    "params": "fill:@table-edge",
    "kv": "fill:@kept",
    "flops": "fill:@attn-edge",
    **{f"kind-{name}": f"fill:@{name}" for name in PALETTE if name[-1].isdigit()},
}

MARKS = {
    "text.differs": "fill:@differs;text-decoration:underline",
    "rect.differs": "stroke:@differs;stroke-width:2",
}


def colours(dark: bool = False) -> str:
    """The variables of a scheme, as declarations: for a page that lets its reader choose one."""
    return ";".join(f"--zoo-{name}:{pair[dark]}" for name, pair in PALETTE.items())


def css() -> str:
    """The style sheet, the same for every diagram."""

    def declared(text: str) -> str:
        """Each colour twice, as itself and as its variable."""
        told = []
        for each in text.split(";"):
            name = re.search(r"@([\w-]+)", each)
            told += [each] if not name else [each.replace(name[0], PALETTE[name[1]][0])]
            told += [each.replace(name[0], f"var(--zoo-{name[1]})")] if name else []
        return ";".join(told)

    rules = {f".{name}": text for name, text in RULES.items()} | MARKS
    sheet = [f".zoo-diagram {selector}{{{declared(text)}}}" for selector, text in rules.items()]
    dark = f"@media(prefers-color-scheme:dark){{:where(.zoo-diagram){{{colours(dark=True)}}}}}"
    base = f".zoo-diagram{{font-family:{FONT}}}.zoo-diagram text{{font-variant-numeric:tabular-nums}}"
    return "\n".join([f":where(.zoo-diagram){{{colours()}}}", dark, base, *sheet])
