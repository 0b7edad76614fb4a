"""Rows about parameters: main table, total by part, and why the Hub or a model's name states another number.

data/hub.json holds the presets whose total on the Hub differs from ours. `total` is the Hub's number, from the headers
of the safetensors files. `beside` counts the parameters in this total that are not part of the text model. A `note`
explains other differences.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.analytic.models import NamedSpec, about, stored_params, stored_parts
from zoo.cli.tables import Row
from zoo.model.layer_pattern import labels

HUB_DATA = Path(__file__).parents[1] / "data" / "hub.json"
FLOPS_CONTEXT = 4096  # tokens
KV_CONTEXT, MAX_KV_CONTEXT = 32 * 1024, 128 * 1024  # tokens
KV_DTYPE = torch.bfloat16
OUTSIDE_LAYERS = ("embedding", "head")
FFN_PARTS = ("ffn", "routed", "shared", "router")
LAYER_PARTS = ("attn", "indexer", *FFN_PARTS, "inputs", "streams", "norm")
PARTS = (*OUTSIDE_LAYERS, *LAYER_PARTS)
NAME_UNITS = {"b": 10**9, "m": 10**6}


def cost_row(model: NamedSpec) -> Row:
    """Returns a row of the main table: parameters, FLOPs of one token, and cache bytes of one sequence in bfloat16.

    `longest_context` is 128k tokens, or the model's own `context` where that is shorter. `windows` lists the number of
    layers for each limit of cached tokens. `state_layers` counts the layers with a state of fixed size, and
    `state_bytes` the bytes of all these states. If a layer's cache entries cover several tokens, only its window counts
    here, not the states of its compressor.
    """
    spec = model.spec
    publisher_active, rule = (model.size and model.size.active) or (None, None)
    fixed, per_token = spec.kv_growth()
    longest = longest_context(spec.context)
    caches = [layer.cache_spec() for layer in spec.layers]
    limits = Counter(cache.reach.limit for cache in caches if cache.per_token)
    with_states = [cache for cache in caches if cache.state and not cache.entries]
    return {
        "table": "costs",
        **about(model),
        "released": model.size.released if model.size else None,
        "note": model.size.note if model.size else None,
        "layers": len(spec.layers),
        "context": spec.context,
        "params": spec.params(),
        "active_params": spec.active_params(),
        "publisher_active_params": publisher_active,
        "publisher_active_rule": rule,
        "flops_per_token_4k": spec.flops(past=FLOPS_CONTEXT - 1, new=1),
        "windows": [{"layers": layers, "tokens": tokens} for tokens, layers in limits.items() if tokens is not None],
        "state_layers": len(with_states),
        "state_bytes": sum(cache.state_bytes(KV_DTYPE.itemsize) for cache in with_states),
        "kv_fixed_bytes": fixed,
        "kv_bytes_per_token": per_token,
        "kv_bytes_32k": spec.kv_bytes(KV_CONTEXT),
        "longest_context": longest,
        "kv_bytes_longest_context": spec.kv_bytes(longest),
    }


def longest_context(limit: int | None) -> int:
    """Returns 128k tokens, or the model's own `limit` where that is shorter."""
    return MAX_KV_CONTEXT if limit is None else min(limit, MAX_KV_CONTEXT)


def param_row(model: NamedSpec) -> Row:
    """Returns a row with the parameter count `params`, and the count of each part; these add up to it.

    For published sizes, `hub_params` is the total that the Hub states; `hub_beside` lists the parameters in it that do
    not belong to the text model. `name_params` and `name_active_params` are the counts in the model's name (30B-A3B).
    The parameters of an estimated model are those in the headers of its files, if there are any.
    """
    breakdown = stored_parts(model) or model.spec.param_breakdown()
    total, active = stored_params(model) if stored_parts(model) else (model.spec.params(), model.spec.active_params())
    hub = _hub().get(model.name, {"total": total}) if model.size else {}
    claimed, claimed_active = claims(model.name) if model.size else (None, None)
    return {
        "table": "params",
        **about(model),
        "params": total,
        "active_params": active,
        **_by_part(breakdown, PARTS),
        "hub_params": hub.get("total"),
        "hub_beside": [{"what": what, "params": params} for what, params in hub.get("beside", {}).items()],
        "hub_note": hub.get("note"),
        "name_params": claimed,
        "name_active_params": claimed_active,
    }


@cache
def _hub() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(HUB_DATA.read_text(encoding="utf-8"))
    return found


def claims(preset: str) -> tuple[int | None, int | None]:
    """Returns the (total, active) parameters that a name claims (None: no claim).

    "qwen3-30b-a3b" claims 30 and 3 billion; "mixtral-8x7b" 56 billion, though experts share all but the feed-forward.
    """
    found = re.findall(r"(?<![a-z0-9.])(a?)(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", preset.lower())
    sizes = {prefix: round(int(times or 1) * float(size) * NAME_UNITS[unit]) for prefix, times, size, unit in found}
    return sizes.get(""), sizes.get("a")


def layer_rows(model: NamedSpec) -> Iterator[Row]:
    """Yields one row for each distinct kind of layer: the number of such layers, and the parameters of one."""
    spec = model.spec
    for (layer, number), label in zip(Counter(spec.layers).items(), labels(spec.layers), strict=True):
        yield {
            "table": "layers",
            **about(model),
            "kind": label,
            "layers": number,
            "params": layer.params(spec.dim),
            "active_params": layer.active_params(spec.dim),
            **_by_part(layer.param_breakdown(spec.dim), LAYER_PARTS),
        }


def ffn_cells(cost: str) -> Callable[[Row], Row]:
    """Returns a function that sums a row's `cost` (params or flops) over the feed-forward and over other parts."""
    whole, other = f"all_ffn_{cost}", f"other_{cost}"
    return lambda row: {whole: sum(row[f"{part}_{cost}"] for part in FFN_PARTS), other: row[other] or None}


def _by_part(breakdown: Mapping[str, int], parts: Iterable[str]) -> Row:
    known = {f"{part}_params": breakdown.get(part, 0) for part in parts}
    return {**known, "other_params": sum(breakdown.values()) - sum(known.values())}
