"""The costs of parts of a model, as text for tooltips and as cells with bars."""

from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import torch

from zoo.costs import whole
from zoo.diagram.canvas import SMALL, Canvas, text_width, wrap_text
from zoo.model.decoder import Decoder
from zoo.registry import Block, Mixer
from zoo.units import format_bytes, format_count

CELL = 26.0  # height of a number and its bar


class Cost(NamedTuple):
    """The total cost of `layers` equal blocks."""

    layers: int
    params: int
    active: int  # parameters
    kv: int = 0  # cache bytes per visible token
    limit: int | None = None  # maximum of visible tokens; None: no limit
    entries: Fraction = Fraction()  # bytes of compressed entries per token of the whole context
    state: int = 0  # bytes, the same for every context
    flops: int = 0
    scores: int = 0  # FLOPs that grow with the context; part of `flops`


def tooltip(name: str, cost: Cost, layers: int = 0) -> str:
    """Returns the exact costs of a part as text. The part occurs in `layers` layers, or outside the layers (0)."""
    kept = f", {cost.kv:,} cache bytes per token" if cost.kv else ""
    kept += f", {whole(cost.entries):,} entry bytes per token" if cost.entries else ""
    kept += f", {cost.state:,} bytes of state" if cost.state else ""
    where = f" in {layers:,} layer{'s' if layers > 1 else ''}" if layers else ""
    return f"{name}: {cost.params:,} parameters{kept}, {cost.flops:,} FLOPs{where}"


class Costs:
    """The costs of a model's parts. The KV cache holds one sequence of `context` tokens in `dtype`. FLOPs are those of
    one new token that sees `context` tokens, including itself."""

    def __init__(self, spec: Decoder, context: int, dtype: torch.dtype) -> None:
        self.spec, self.context, self.dtype = spec, context, dtype

    @cached_property
    def totals(self) -> tuple[int, int, int]:
        """The model's parameters, the bytes of its cache, and the FLOPs for one new token."""
        cache = self.spec.kv_bytes(self.context, dtype=self.dtype)
        return self.spec.params(), cache, self.spec.flops(self.context - 1, 1)

    def of(self, block: Block, layers: int) -> Cost:
        """Returns the total cost of a block, a branch or a layer that occurs in `layers` layers."""
        dim, past = self.spec.dim, self.context - 1
        cache = next((part.cache_spec() for part in block.walk() if isinstance(part, Mixer)), None)
        parts = block.flop_breakdown(dim, past, 1)
        return Cost(
            layers,
            params=layers * block.params(dim),
            active=layers * block.active_params(dim),
            kv=layers * cache.elements() * self.dtype.itemsize if cache else 0,
            limit=cache.reach.limit if cache else None,
            entries=layers * cache.entry_growth(self.dtype.itemsize) if cache else Fraction(),
            state=layers * int(cache.state_bytes(self.dtype.itemsize)) if cache else 0,
            flops=layers * block.flops(dim, past, 1),
            scores=layers * sum(parts.get(part, 0) for part in ("scores", "entries")),
        )

    def cells(self, canvas: Canvas, x: float, y: float, width: float, cost: Cost, detailed: bool = True) -> float:
        """Draws three cells side by side: parameters, KV cache, FLOPs. A bar shows the share of the model's total. With
        `detailed`, details follow below. Returns the y below the cells."""
        kept = cost.state + cost.kv * (self.context if cost.limit is None else min(cost.limit, self.context))
        kept += round(cost.entries * self.context)
        params, cache, flops = self.totals
        scores = [f"scores {_percent(cost.scores / flops)}"] if cost.scores else []
        cells = (  # CSS class of the bar, its share, number, label, details
            ("params", cost.params / params, format_count(cost.params), "parameters", _param_details(cost)),
            ("kv", kept / (cache or 1), _cache_figure(cost), _cache_unit(cost), _cache_details(cost)),
            ("flops", cost.flops / flops, _percent(cost.flops / flops), "of FLOPs", scores),
        )
        step, lowest = (width + 14) / len(cells), y + CELL
        for i, (css_class, share, figure, what, details) in enumerate(cells):
            if not share:
                continue
            left, room = x + i * step, step - 14
            in_line = text_width(f"{figure} {what}", SMALL) <= room
            below = ([] if in_line else [what]) + (details if detailed else [])
            canvas.text(left, y + 11, f"{figure} {what}" if in_line else figure, SMALL, room)
            canvas.rect(left, y + 17, room, 3, "track", 1.5)
            canvas.rect(left, y + 17, max(room * min(share, 1.0), 0.5), 3, css_class, 1.5)
            lines = [line for text in below for line in wrap_text(text, room)]
            lowest = max(lowest, canvas.lines(left, y + CELL + 7, lines, room, "faint") - 7)
        return lowest


def _param_details(cost: Cost) -> list[str]:
    details = [f"{format_count(cost.params / cost.layers)} per layer"] if cost.layers > 1 else []
    return details + ([f"{format_count(cost.active)} active"] if cost.active < cost.params else [])


def _cache_figure(cost: Cost) -> str:
    per_token = cost.kv * (cost.limit is None) + round(cost.entries)
    return format_bytes(per_token or cost.kv * (cost.limit or 0) or cost.state)


def _cache_unit(cost: Cost) -> str:
    return "of cache per token" if (cost.kv and cost.limit is None) or cost.entries else "of cache, fixed"


def _cache_details(cost: Cost) -> list[str]:
    details = []
    if cost.limit is not None and cost.kv:
        details.append(f"{format_bytes(cost.kv)} for each of the last {cost.limit:,}")
    if cost.state and (cost.kv or cost.entries):
        details.append(f"state {format_bytes(cost.state)}")
    return details


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"
