"""The data of the charts, as tables of plain rows; the CSV files beside the page hold the same tables."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch

from benchmarks.analytic.kv import InferenceConfig, changes, pieces
from benchmarks.analytic.models import NamedSpec
from benchmarks.analytic.params import PARTS
from benchmarks.analytic.roofline import forward_pass
from benchmarks.output.report import named
from zoo.cli.tables import Row
from zoo.model.decoder import Decoder

CONTEXTS = tuple(round(2 ** (8 + i / 2)) for i in range(25))  # 256 to 1M tokens, two steps per doubling
PASS_CONTEXT = 4096  # tokens of context in the roofline
PASSES = (("decode", 1), ("decode", 8), ("decode", 64), ("prefill", 1))  # phase and batch
ONE_BYTE, TWO_BYTES = torch.uint8, torch.bfloat16


def tables(models: Sequence[NamedSpec], measured: Iterable[Mapping[str, Any]] = ()) -> dict[str, list[Row]]:
    """Returns every table, by name. All rows of a table have the same columns."""
    specs = {model.name: model.spec for model in models}
    made: dict[str, Iterable[Row]] = {
        "kv": [row | _cache(specs[row["model"]], row["context"]) for row in _contexts(models)],
        "crossings": _crossings(models),
        "params": _params(models),
        "active": [{"model": m.name, "params": m.spec.params(), "active": m.spec.active_params()} for m in models],
        "flops": [row | {"flops": specs[row["model"]].flops(row["context"] - 1, 1)} for row in _contexts(models)],
        "passes": _passes(models),
        "measured": _measured(measured),
    }
    return {name: list(rows) for name, rows in made.items()}


def _contexts(models: Sequence[NamedSpec]) -> Iterator[Row]:
    """Yields a row for each context, and for the model's max context if in range. `beyond`: above the max context."""
    for model in models:
        max_context = model.spec.context
        own = [max_context] if max_context and max_context <= CONTEXTS[-1] else []
        for context in sorted({*CONTEXTS, *own}):
            yield {
                "model": model.name,
                "context": context,
                "beyond": max_context is not None and context > max_context,
            }


def _cache(spec: Decoder, context: int) -> dict[str, int]:
    """Returns one sequence's cache: `elements` in the cache dtype, and `float32_bytes` of states, always in float32."""
    one, two = (spec.kv_bytes(context, dtype=dtype) for dtype in (ONE_BYTE, TWO_BYTES))
    return {"elements": two - one, "float32_bytes": 2 * one - two}


def _crossings(models: Sequence[NamedSpec]) -> Iterator[Row]:
    """Yields the crossings of every two models' bfloat16 caches: the context at which another model's cache becomes the
    smaller one, and the size of that cache there."""
    growth = {model.name: pieces(model.spec, TWO_BYTES) for model in models}
    for first, second in combinations(models, 2):
        for change in changes(growth[first.name], growth[second.name])[1:]:
            if change.sign and CONTEXTS[0] <= change.start <= CONTEXTS[-1]:
                smaller, larger = (first, second) if change.sign < 0 else (second, first)
                yield {
                    "smaller": smaller.name,
                    "larger": larger.name,
                    "context": change.start,
                    **_cache(smaller.spec, change.start),
                }


def _params(models: Sequence[NamedSpec]) -> Iterator[Row]:
    for model in models:
        parts = model.spec.param_breakdown()
        for part in dict.fromkeys([*PARTS, *parts]):
            if parts.get(part):
                yield {"model": model.name, "part": part, "params": parts[part]}


def pass_name(phase: str, batch: int) -> str:
    """Returns the name of a pass: "decode, batch 8" or "prefill"."""
    return f"{phase}, batch {batch}" if phase == "decode" else phase


def _passes(models: Sequence[NamedSpec]) -> Iterator[Row]:
    """Yields FLOPs and bytes of passes in bfloat16, from which a device's rates give the ceilings."""
    for model in models:
        for phase, batch in PASSES:
            work = forward_pass(model.spec, phase, PASS_CONTEXT, InferenceConfig(batch))
            yield {
                "model": model.name,
                "pass": pass_name(phase, batch),
                "context": PASS_CONTEXT,
                "batch": batch,
                "tokens": work.tokens,
                "flops": work.flops,
                "bytes": round(work.weight_bytes) + work.kv_bytes,
            }


def _workload(row: Mapping[str, Any]) -> str:
    """Returns the test of a row in words: "prefill of 512 tokens", "decode of 8 tokens after 512"."""
    if row["phase"] == "train":
        return str(row["test"])
    return f"{row['phase']} of {row['tokens']:,} tokens" + (f" after {row['depth']:,}" if row["depth"] else "")


def _measured(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Yields the speeds in the rows of `python -m benchmarks throughput --json`."""
    for row in rows:
        if row.get("table") == "throughput":
            yield {
                "model": named(dict(row)) + (" (tiny)" if row["tiny"] else ""),
                "how": f"{row['implementation']}, {row['mode']}",
                "workload": f"{_workload(row)}, batch {row['batch']}, {row['dtype']} on {row['device']}",
                "tokens_per_s": row["tokens_per_s"],
                "low": row["tokens_per_s_min"],
                "high": row["tokens_per_s_max"],
                "ceiling": row["ceiling_tokens_per_s"],
            }
