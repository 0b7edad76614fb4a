"""The three columns beside the blocks: parameters, what the cache keeps of a token, share of the FLOPs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from zoo.diagram.canvas import Canvas
from zoo.model.decoder import Decoder
from zoo.registry import Block, Mixer
from zoo.units import format_bytes, format_count

RIGHT = {"params": 392.0, "kv": 466.0, "flops": 534.0}  # where each column ends
WIDE = {"params": 60.0, "kv": 69.0, "flops": 58.0}
HEADS = {"params": "parameters", "kv": "KV per token", "flops": "FLOPs"}
SIZE, SMALL = 10.5, 9.0


@dataclass(frozen=True)
class Totals:
    """What a whole model costs: the figures that shares are of."""

    spec: Decoder
    context: int
    dtype: torch.dtype

    @property
    def params(self) -> int:
        """Stored numbers."""
        return self.spec.params()

    @property
    def kv(self) -> int:
        """Bytes of one sequence's cache at this context."""
        return self.spec.kv_bytes(self.context, dtype=self.dtype)

    @property
    def flops(self) -> int:
        """FLOPs of one new token that sees this context, itself included."""
        return self.spec.flops(self.context - 1, 1)


@dataclass(frozen=True)
class Cost:
    """What `layers` equal blocks cost together."""

    layers: int
    params: int
    active: int
    kv: int = 0  # bytes a token
    window: int | None = None  # tokens that are kept; None: all
    flops: int = 0
    scores: int = 0  # FLOPs among these that grow with the context


def of_block(block: Block, layers: int, whole: Totals) -> Cost:
    """The cost of a block, a branch or a whole layer, in each of some layers."""
    dim, past = whole.spec.dim, whole.context - 1
    stored = next((part.cache_spec() for part in block.walk() if isinstance(part, Mixer)), None)
    kept = stored.elements() * whole.dtype.itemsize if stored else 0
    return Cost(
        layers,
        params=layers * block.params(dim),
        active=layers * block.active_params(dim),
        kv=layers * kept,
        window=stored.window if stored else None,
        flops=layers * block.flops(dim, past, 1),
        scores=layers * block.flop_breakdown(dim, past, 1).get("scores", 0),
    )


def of_embedding(whole: Totals) -> Cost:
    """The cost of the embedding, in which a row is looked up."""
    params = whole.spec.param_breakdown()["embedding"]
    return Cost(1, params, params)


def of_head(whole: Totals) -> Cost:
    """The cost of the head; it stores nothing where it is tied to the embedding."""
    params = whole.spec.param_breakdown()["head"]
    return Cost(1, params, params, flops=whole.spec.flop_breakdown(whole.context - 1, 1)["head"])


def headings(canvas: Canvas, y: float) -> None:
    """The columns' names."""
    for name, words in HEADS.items():
        canvas.text(RIGHT[name], y, words, SMALL, WIDE[name] + 12, "faint", "end")


def columns(canvas: Canvas, y: float, cost: Cost, whole: Totals, detailed: bool = False) -> None:
    """A block's figures on the line `y`; detailed, with bars for their shares and what one layer has below."""
    kept = cost.kv * (whole.context if cost.window is None else min(cost.window, whole.context))
    shares = {"params": cost.params / whole.params, "kv": kept / whole.kv, "flops": cost.flops / whole.flops}
    figures = {"params": format_count(cost.params), "kv": format_bytes(cost.kv), "flops": _percent(shares["flops"])}
    for name, figure in figures.items():
        if not getattr(cost, name):
            continue
        right, wide = RIGHT[name], WIDE[name]
        canvas.text(right, y, figure, SIZE, wide, "strong" if detailed else "ink", "end")
        if detailed:
            canvas.rect(right - wide, y + 5, wide, 3, "track", 1.5)
            canvas.rect(right - wide, y + 5, max(wide * shares[name], 0.5), 3, name, 1.5)
            for i, line in enumerate(_details(name, cost, whole)):
                canvas.text(right, y + 20 + 12 * i, line, SMALL, wide, "faint", "end")


def _details(name: str, cost: Cost, whole: Totals) -> Iterator[str]:
    """What stands below a figure."""
    if name == "params" and cost.layers > 1:
        yield f"{format_count(cost.params / cost.layers)}/layer"
    if name == "params" and cost.active < cost.params:
        yield f"active {format_count(cost.active)}"
    if name == "kv" and cost.layers > 1:
        yield f"{format_bytes(cost.kv / cost.layers)}/layer"
    if name == "kv" and cost.window:
        yield f"of last {cost.window:,}"
    if name == "flops" and cost.scores:
        yield f"scores {_percent(cost.scores / whole.flops)}"


def tip(name: str, cost: Cost) -> str:
    """The exact figures."""
    kept = f", {cost.kv:,} bytes of cache a token" if cost.kv else ""
    where = "" if cost.layers == 1 else f" in {cost.layers:,} layers"
    return f"{name}: {cost.params:,} parameters{kept}, {cost.flops:,} FLOPs{where}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"
