"""The least time that a pass can take: FLOPs over the arithmetic rate or bytes over the bandwidth, whichever is longer.

(Williams, Waterman and Patterson 2009.) Nothing else is counted: no activations, no launches, no waiting. A measured
figure stays below these ceilings, and how far below says how good the code is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from zoo.errors import unknown
from zoo.model.decoder import Decoder

DATA = Path(__file__).parents[1] / "data" / "devices.json"


@dataclass(frozen=True)
class Device:
    """Peak rates: `flops` a second of 16-bit matrix products without sparsity, `bandwidth` in bytes a second, and bytes
    of memory, None if unknown. `source` says who published them."""

    name: str
    flops: float
    bandwidth: float
    memory: float | None = None
    source: str = "Rates as given."


@cache
def devices() -> dict[str, Device]:
    """The devices that are known by name."""
    return {name: Device(**entry) for name, entry in json.loads(DATA.read_text(encoding="utf-8")).items()}


def device(name: str) -> Device:
    """A known device. Raises UsageError naming the nearest ones."""
    known = devices()
    if name.lower() not in known:
        raise unknown("device", name, known)
    return known[name.lower()]


@dataclass(frozen=True)
class Pass:
    """A forward of `tokens` tokens in all: its FLOPs, and the bytes that must at least be moved."""

    tokens: int
    flops: int
    weight_bytes: float
    kv_bytes: int

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / (self.weight_bytes + self.kv_bytes)

    def seconds(self, device: Device) -> float:
        """The least time on this device."""
        return max(self.flops / device.flops, (self.weight_bytes + self.kv_bytes) / device.bandwidth)

    def bound(self, device: Device) -> Literal["memory", "compute"]:
        """What that time is spent on."""
        return "compute" if self.intensity > device.flops / device.bandwidth else "memory"

    def tokens_per_s(self, device: Device) -> float:
        """The ceiling on speed, over all sequences."""
        return self.tokens / self.seconds(device)


def decode(spec: Decoder, context: int, batch: int, weights: torch.dtype, cache: torch.dtype) -> Pass:
    """One token for each sequence, which sees `context` tokens, itself included: the cache is read once."""
    return Pass(
        tokens=batch,
        flops=batch * spec.flops(context - 1, 1),
        weight_bytes=spec.read_params(batch) * weights.itemsize,
        kv_bytes=spec.kv_bytes(context, batch, cache),
    )


def prefill(spec: Decoder, context: int, batch: int, weights: torch.dtype, cache: torch.dtype) -> Pass:
    """`context` tokens of each sequence in one pass, the last one's logits kept: the cache is written once."""
    return Pass(
        tokens=batch * context,
        flops=batch * spec.flops(0, context, logits=1),
        weight_bytes=spec.read_params(batch * context) * weights.itemsize,
        kv_bytes=spec.kv_bytes(context, batch, cache),
    )
