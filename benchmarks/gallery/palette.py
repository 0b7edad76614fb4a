"""Colours of the charts: a hue for each architecture, a shade for each of its sizes, a colour for each part.

They are told apart on a white page and on a dark one, and parts have the colours that the diagrams give them.
"""

from __future__ import annotations

from colorsys import hls_to_rgb, rgb_to_hls
from itertools import cycle

from zoo.architectures import families

HUES = ("#3b76d6", "#d9731a", "#2f9e5b", "#d6455d", "#9a5fd0", "#1295a0", "#8f8412", "#d459a6")
SPREAD = 0.16  # between the lightest and the darkest size, of 1
PARTS = {
    "embedding": "#7565c2",
    "head": "#a99ee0",
    "attn": "#3a70c4",
    "ffn": "#2c8a4b",
    "routed": "#63b87f",
    "shared": "#1295a0",
    "router": "#d6455d",
    "norm": "#b98200",
}
OTHER = "#8a93a0"
# Where a page has its own colours, they follow its scheme; a picture for a paper is light.
LIGHT = {"ink": "#1a222e", "faint": "#566170", "grid": "#e3e7ec", "paper": "#ffffff", "accent": "#c8105f"}
PAGE = {name: f"var(--{name})" for name in LIGHT}


def models() -> dict[str, str]:
    """Preset -> colour."""
    found = {}
    for hue, family in zip(cycle(HUES), families().values(), strict=False):
        for i, name in enumerate(family.SIZES):
            found[name] = _shade(hue, i, len(family.SIZES))
    return found


def _shade(colour: str, i: int, of: int) -> str:
    h, lightness, s = rgb_to_hls(*(int(colour[j : j + 2], 16) / 255 for j in (1, 3, 5)))
    step = SPREAD * (0.5 - i / (of - 1)) if of > 1 else 0.0
    red, green, blue = hls_to_rgb(h, lightness + step, s)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
