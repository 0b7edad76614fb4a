"""The tables of the main job: which columns they show, and what each column means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.analytic.costs import FLOPS_CONTEXT
from benchmarks.measure.environment import chosen_kernels, kernel_summary
from benchmarks.measure.throughput import TINY_DECODE, TINY_PREFILL
from benchmarks.measure.throughput_tables import repetitions
from benchmarks.output.report import Table
from benchmarks.output.show import positions, unit
from zoo.cli.tables import Column
from zoo.core.devices import machine
from zoo.units import format_count

Row = dict[str, Any]
Rows = Sequence[Row]


def static(rows: Rows) -> tuple[Table, ...]:
    """What follows from the specs alone."""
    return parameters(rows), kv_cache(rows)


def parameters(rows: Rows) -> Table:
    """Parameters and the arithmetic of one token."""
    columns = [
        Column("model", "model"),
        Column("layers", "layers"),
        Column("params", "total (B)", unit(1e9, 3)),
        Column("active_params", "active (B)", unit(1e9, 3)),
        Column("publisher_active_params", "card (B)", unit(1e9, 3)),
        Column("flops_per_token_4k", "GFLOPs/token", unit(1e9, 2)),
    ]
    legend = [
        "total (B): 10^9 parameters of the text model, each stored value once, a tied head too.",
        "active (B): total less the experts that a token is not routed to.",
        *_publisher_rules(rows),
        f"GFLOPs/token: 10^9 FLOPs for one token that sees {FLOPS_CONTEXT:,}, itself included; 2 per multiply-add of "
        "all matrix products, attention's too; masked pairs are not counted.",
    ]
    return Table("Parameters and arithmetic", columns, legend, rows)


def kv_cache(rows: Rows) -> Table:
    """Cache bytes of one sequence."""
    columns = [
        Column("model", "model"),
        Column("windows", "windowed", _windows),
        Column("kv_fixed_bytes", "fixed MiB", unit(2**20, 1)),
        Column("kv_bytes_per_token", "KiB/token", unit(2**10, 1)),
        Column("kv_bytes_32k", "32k GiB", unit(2**30, 2)),
        Column("longest_context", "up to", positions),
        Column("kv_bytes_longest_context", "GiB", unit(2**30, 2)),
    ]
    legend = [
        "windowed: layers x tokens, of layers that keep only their last tokens. Full, these take fixed MiB in all.",
        "KiB/token: what the other layers add for each token of context.",
        "32k GiB: at 32,768 tokens, even where the model was trained for fewer.",
        "up to, GiB: at 128k tokens, or at the model's own context where that is shorter. k, KiB, MiB and GiB are "
        "powers of 1024.",
    ]
    return Table("KV cache of one sequence in bfloat16", columns, legend, rows)


def tiny_throughput(rows: Rows) -> Table:
    """Speed of the tiny forms on this machine: a line for each model that was timed in both phases."""
    columns = [
        Column("model", "tiny model"),
        Column("prefill", "prefill/s", format_count),
        Column("prefill_range", "min-max"),
        Column("tokens_per_s", "decode/s", unit(1, 0)),
        Column("decode_range", "min-max"),
        Column("us_per_layer", "us/layer", unit(1, 0)),
    ]
    first, here = rows[0], machine()
    legend = [
        "Tiny forms have toy widths, random weights and at least one layer of each kind. They measure the code's "
        "overhead per layer, not the speed of the released models.",
        f"prefill/s: {TINY_PREFILL} tokens in one pass. decode/s: {TINY_DECODE} more, one at a time, with the cache.",
        "us/layer: microseconds for a decoded token, divided by the number of layers.",
        f"{repetitions(rows)}, models taking turns; {first['dtype']}, batch {first['batch']}, "
        f"threads: {first['threads']}, {here['cpu']}, torch {here['torch']}.",
        f"{kernel_summary(chosen_kernels())}.",
    ]
    prefill = {(row["model"], row["swap"]): row for row in rows if row["phase"] == "prefill"}

    def timed_twice(row: Row) -> bool:
        return row["phase"] == "decode" and (row["model"], row["swap"]) in prefill

    def both(row: Row) -> Row:
        before = prefill[row["model"], row["swap"]]
        return {
            "prefill": before["tokens_per_s"],
            "prefill_range": _range(before, format_count),
            "decode_range": _range(row, unit(1, 0)),
            "us_per_layer": 1e6 / row["tokens_per_s"] / row["layers"],
        }

    return Table("Tokens a second of tiny models on this machine", columns, legend, rows, both, timed_twice)


def _publisher_rules(rows: Rows) -> list[str]:
    """A legend line where a publisher counts active parameters by a rule that is not ours."""
    models: dict[str, list[str]] = {}
    for row in rows:
        if row["publisher_active_rule"]:
            models.setdefault(row["publisher_active_rule"], []).append(row["model"])
    told = "; ".join(f"{', '.join(named)}: {rule}" for rule, named in models.items())
    return [f"card (B): active as the publisher counts it ({told})."] if told else []


def _range(row: Row, show: Callable[[Any], str]) -> str:
    return f"{show(row['tokens_per_s_min'])}-{show(row['tokens_per_s_max'])}"


def _windows(value: Sequence[dict[str, int]]) -> str:
    return " + ".join(f"{window['layers']} x {window['tokens']:,}" for window in value)
