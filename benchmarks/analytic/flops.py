"""Rows about arithmetic: FLOPs of a prefill and of a decoded token by part, and the ceilings a device puts on them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.analytic.costs import about
from benchmarks.analytic.kv import Setting
from benchmarks.analytic.models import Model
from benchmarks.analytic.roofline import Device, decode, prefill
from zoo.units import dtype_name

PARTS = ("projections", "scores", "ffn", "routed", "shared", "router", "head")
PHASES = {"decode": decode, "prefill": prefill}
Row = dict[str, Any]


def rows(models: Iterable[Model], context: int, setting: Setting, device: Device) -> list[Row]:
    """Two rows for each model: decode, of one token that sees `context` tokens, and prefill, of `context` tokens whose
    last logits are kept; both of all sequences together.

    The parts add up to `flops`, which counts the pairs that are not masked; `full_square_flops` counts every pair that
    a masked dense kernel computes.
    """
    return [row(model, phase, context, setting, device) for model in models for phase in PHASES]


def row(model: Model, phase: str, context: int, setting: Setting, device: Device) -> Row:
    """One model in one phase."""
    spec, batch = model.spec, setting.batch
    work = PHASES[phase](spec, context, batch, setting.weights, setting.cache)
    past, new = (context - 1, 1) if phase == "decode" else (0, context)
    parts = {part: batch * number for part, number in spec.flop_breakdown(past, new, logits=1).items()}
    held = spec.params() * setting.weights.itemsize + work.kv_bytes
    return {
        "table": "flops",
        **about(model),
        "phase": phase,
        "context": context,
        **setting.describe(),
        "weights_dtype": dtype_name(setting.weights),
        "flops": work.flops,
        **{f"{part}_flops": parts.get(part, 0) for part in PARTS},
        "other_flops": sum(number for part, number in parts.items() if part not in PARTS),
        "full_square_flops": batch * spec.flops(past, new, logits=1, causal=False),
        "weight_bytes_read": round(work.weight_bytes),
        "kv_bytes": work.kv_bytes,
        "flops_per_byte": work.intensity,
        "device": device.name,
        "device_flops": device.flops,
        "device_bandwidth": device.bandwidth,
        "fits": None if device.memory is None else held <= device.memory,
        "seconds": work.seconds(device),
        "bound": work.bound(device),
        "tokens_per_s": work.tokens_per_s(device),
    }
