"""What a model costs before it is built: rows of exact integers, from its spec alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from benchmarks.analytic.models import Model
from zoo.model.decoder import Decoder

FLOPS_CONTEXT = 4096
KV_CONTEXT, KV_LONGEST = 32 * 1024, 128 * 1024


def rows(models: Iterable[Model]) -> list[dict[str, Any]]:
    """One row of costs for each model."""
    return [row(model) for model in models]


def row(model: Model) -> dict[str, Any]:
    """Parameters, FLOPs of a token, and cache bytes of one sequence in bfloat16.

    `longest_context` is 128k tokens or the model's own `context` where that is shorter; `windows` tells which layers
    keep only their last tokens.
    """
    spec = model.spec
    publisher_active, rule = (model.size and model.size.active) or (None, None)
    fixed, per_token = spec.kv_growth()
    longest = longest_context(spec.context)
    return {
        "table": "costs",
        **about(model),
        "layers": len(spec.layers),
        "context": spec.context,
        "params": spec.params(),
        "active_params": spec.active_params(),
        "publisher_active_params": publisher_active,
        "publisher_active_rule": rule,
        "flops_per_token_4k": spec.flops(past=FLOPS_CONTEXT - 1, new=1),
        "windows": _windows(spec),
        "kv_fixed_bytes": fixed,
        "kv_bytes_per_token": per_token,
        "kv_bytes_32k": spec.kv_bytes(KV_CONTEXT),
        "longest_context": longest,
        "kv_bytes_longest_context": spec.kv_bytes(longest),
    }


def about(model: Model) -> dict[str, Any]:
    """What every row says of its model first."""
    hub = model.size.hub if model.size else None
    return {"model": model.name, "hub": hub, "swap": model.swap, "dropped": model.dropped}


def longest_context(limit: int | None) -> int:
    """128k tokens, or the model's own `limit` where that is shorter."""
    return KV_LONGEST if limit is None else min(limit, KV_LONGEST)


def _windows(spec: Decoder) -> list[dict[str, int]]:
    """For each window, how many layers keep no more than that many tokens."""
    windows = Counter(layer.cache_spec().window for layer in spec.layers)
    return [{"layers": layers, "tokens": tokens} for tokens, layers in windows.items() if tokens is not None]
