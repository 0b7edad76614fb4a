"""Why the Hub shows another number of parameters than we count, part by part, and what a model's name says.

data/hub.json holds, for each preset of which there is more to say than our count, the Hub's total (over the headers of
its safetensors files) and what is stored beside the text model.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

DATA = Path(__file__).parents[1] / "data" / "hub.json"
UNITS = {"b": 10**9, "m": 10**6}


@dataclass(frozen=True)
class Shown:
    """What the Hub shows: a total, and the parameters in it that are `beside` the text model, by what they are. `note`:
    what else has been read there."""

    total: int
    beside: dict[str, int] = field(default_factory=dict)
    note: str | None = None


@cache
def _differing() -> dict[str, Shown]:
    return {name: Shown(**entry) for name, entry in json.loads(DATA.read_text(encoding="utf-8")).items()}


def shown(preset: str, params: int) -> Shown:
    """What the Hub shows for a preset of which we count `params`."""
    return _differing().get(preset, Shown(params))


def named(preset: str) -> tuple[int | None, int | None]:
    """(total, active) parameters as a name claims them: "qwen3-30b-a3b" -> 30 billion, 3 billion. A name as
    "mixtral-8x7b" claims eight times seven billion, though experts share all but the feed-forward. None for what a name
    does not claim."""
    claims = re.findall(r"(?<![a-z0-9.])(a?)(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", preset.lower())
    found = {prefix: round(int(times or 1) * float(number) * UNITS[unit]) for prefix, times, number, unit in claims}
    return found.get(""), found.get("a")
