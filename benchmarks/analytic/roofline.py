"""FLOPs of a pass by part, and its roofline: the least time of the pass on a device.

That time is FLOPs over the arithmetic rate or bytes over the bandwidth, whichever is longer (Williams, Waterman and
Patterson 2009). Activations, launches and waiting are not counted, so a measured figure stays below these ceilings.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Literal

from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import NamedSpec, about
from benchmarks.analytic.params import FFN_PARTS
from zoo.cli.tables import Row
from zoo.errors import unknown
from zoo.model.decoder import Decoder

DEVICE_DATA = Path(__file__).parents[1] / "data" / "devices.json"
FLOP_PARTS = ("projections", "scores", "entries", "indexer", *FFN_PARTS, "inputs", "streams", "head")


@dataclass(frozen=True)
class Device:
    """The peak rates of a device.

    `flops`: FLOPs per second in dense 16-bit matrix products. `bandwidth`: bytes per second from memory. `memory`:
    bytes. `link`: bytes per second from one card to the others (None: unknown). `source` says who published the rates.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float | None = None
    link: float | None = None
    source: str = "Rates as given."


@cache
def devices() -> dict[str, Device]:
    """Returns every device of data/devices.json by its name."""
    return {name: Device(**entry) for name, entry in json.loads(DEVICE_DATA.read_text(encoding="utf-8")).items()}


def device(name: str) -> Device:
    """Returns a known device. Raises UsageError, with the nearest names, for an unknown one."""
    known = devices()
    if name.lower() not in known:
        raise unknown("device", name, known)
    return known[name.lower()]


@dataclass(frozen=True)
class Pass:
    """A forward pass of `tokens` tokens over all sequences: its FLOPs, and the least number of bytes that it moves.

    With several cards, the figures are those of one card, and `sent_bytes` counts the bytes that it sends to the
    others.
    """

    tokens: int
    flops: int
    weight_bytes: float
    kv_bytes: int
    sent_bytes: float = 0.0

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / (self.weight_bytes + self.kv_bytes)

    def seconds(self, device: Device) -> float:
        """Returns the least time on this device. Sending adds to this time, since the next block waits for the data."""
        moving = (self.weight_bytes + self.kv_bytes) / device.bandwidth
        return max(self.flops / device.flops, moving) + self.sending(device)

    def sending(self, device: Device) -> float:
        """Returns the seconds in which a card sends to the others; 0 if the speed of its link is unknown."""
        return self.sent_bytes / device.link if device.link else 0.0

    def bound(self, device: Device) -> Literal["memory", "compute"]:
        """Returns the resource that limits the time on this device."""
        return "compute" if self.intensity > device.flops / device.bandwidth else "memory"

    def tokens_per_s(self, device: Device) -> float:
        """Returns the most tokens per second on this device, over all sequences."""
        return self.tokens / self.seconds(device)


PassTokens = Callable[[int], tuple[int, int]]  # context -> (tokens before a pass, tokens of the pass)
PHASES: dict[str, PassTokens] = {"decode": lambda context: (context - 1, 1), "prefill": lambda context: (0, context)}


def forward_pass(spec: Decoder, phase: str, context: int, config: InferenceConfig) -> Pass:
    """Returns the pass of all sequences in a phase: "decode" or "prefill".

    Decode runs one token per sequence, which sees `context` tokens including itself, and reads the cache once. Prefill
    runs `context` tokens per sequence, computes the logits of the last token, and writes the cache once.
    """
    found = config.costs(spec, *PHASES[phase](context))
    costs = found.total
    return Pass(found.tokens, costs.flops, float(costs.weight_bytes), ceil(costs.cache_bytes), costs.sent_bytes)


def flop_row(model: NamedSpec, phase: str, context: int, config: InferenceConfig, device: Device) -> Row:
    """Returns the row of one forward pass of all sequences together.

    The parts add up to `flops`, which counts query-key pairs that are not masked; `full_square_flops` counts every pair
    that a masked dense kernel computes.
    """
    config = config.of(model)
    spec, batch = config.part(model.spec), config.batch
    work, (past, new) = forward_pass(model.spec, phase, context, config), PHASES[phase](context)
    parts = {part: batch * flops for part, flops in spec.flop_breakdown(past, new, logits=1).items()}
    needed = config.weights.model_bytes(spec) + work.kv_bytes
    return {
        "table": "flops",
        **about(model),
        "phase": phase,
        "context": context,
        **config.describe(),
        "weights_dtype": config.weights.name,
        "flops": work.flops,
        **{f"{part}_flops": parts.get(part, 0) for part in FLOP_PARTS},
        "other_flops": sum(flops for part, flops in parts.items() if part not in FLOP_PARTS),
        "full_square_flops": batch * spec.flops(past, new, logits=1, causal=False),
        "weight_bytes_read": round(work.weight_bytes),
        "kv_bytes": work.kv_bytes,
        "flops_per_byte": work.intensity,
        "device": device.name,
        "device_flops": device.flops,
        "device_bandwidth": device.bandwidth,
        "device_link": device.link,
        "sent_bytes": round(work.sent_bytes),
        "sending_seconds": work.sending(device),
        "fits": None if device.memory is None else needed <= device.memory,
        "seconds": work.seconds(device),
        "bound": work.bound(device),
        "tokens_per_s": work.tokens_per_s(device),
    }
