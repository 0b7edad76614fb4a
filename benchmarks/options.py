"""Words that the verbs of the command line share: options, and how their values are read."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from zoo.terminal import Format

UNITS = {"": 1, "k": 2**10, "m": 2**20}


def tokens(text: str) -> int:
    """A number of tokens: 4096, 32k (of 1,024), 1M."""
    match = re.fullmatch(r"(\d+)([km]?)", str(text).strip().lower().replace(",", "").replace("_", ""))
    if not match or not int(match[1]):
        raise typer.BadParameter(f"{text!r} is no number of tokens; write 4096 or 4k")
    return int(match[1]) * UNITS[match[2]]


Names = Annotated[
    list[str] | None,
    typer.Argument(help="Presets, hub ids, families (all their sizes) or folders with a config.json; none: all."),
]
IgnoreField = Annotated[
    list[str] | None,
    typer.Option("--ignore-field", metavar="NAME", help="A field of a folder's config.json to vouch for. Repeatable."),
]
AsFormat = Annotated[Format, typer.Option("--format", help="How to write the rows.")]
