"""The verb that runs by default: costs of all published sizes, and the speed of tiny models."""

from typing import Annotated

from benchmarks.analytic.params import FLOPS_CONTEXT, cost_row
from benchmarks.measure.benchmark_models import BenchmarkModel, Variant
from benchmarks.measure.environment import kernel_summary, used_kernels
from benchmarks.measure.throughput import TINY_DECODE, TINY_PREFILL, measure_throughput, tiny_config
from benchmarks.measure.throughput_rows import repetitions
from benchmarks.options import ModelOptions, Seed, flag
from benchmarks.output.report import Report, Row, Rows, Table, columns
from benchmarks.output.show import format_tokens, measured_on, min_max, unit
from zoo.units import format_count


def command(
    *,
    static: Annotated[bool, flag("Only the tables that need no measurement.", "--static", "--no-run")] = False,
    seed: Seed = 0,
    models: ModelOptions,
    report: Report,
) -> None:
    """Costs of the models, then the speed of their tiny forms.

    The tables show parameters, FLOPs and KV cache of published sizes, and the prefill and decode speed of tiny models
    on this machine. Ctrl-C during the measurement prints the results so far. csv, json and jsonl hold the rows of all
    tables, each with the name of its table.
    """
    report.add(*static_tables([cost_row(model) for model in models.chosen()]))
    if static:
        return
    measured = [Variant(tiny=True).of(BenchmarkModel(model)) for model in models.representatives()]
    measure_throughput(report, measured, tiny_config(seed), lambda rows, *_: [tiny_throughput_table(rows)])


def static_tables(rows: Rows) -> tuple[Table, ...]:
    """Returns the tables that follow from the specs alone."""
    return parameter_table(rows), kv_table(rows)


def parameter_table(rows: Rows) -> Table:
    """Returns the table of parameters, with the FLOPs of one token."""
    shown = [
        *columns(model="model", released="released", layers="layers"),
        *columns(unit(1e9, 3), params="total\n(B)", active_params="active\n(B)"),
        *columns(unit(1e9, 3), publisher_active_params="published\nactive (B)"),
        *columns(unit(1e9, 2), flops_per_token_4k="GFLOPs\n/ token"),
    ]
    published, notes = _by_value(rows, "publisher_active_rule"), _by_value(rows, "note")
    legend = [
        "total (B): 10^9 parameters of the text model, each stored value once, a tied head too.",
        "active (B): total less the experts that a token is not routed to.",
        *([f"published active (B): as the publisher counts it ({published})."] if published else []),
        f"GFLOPs / token: 10^9 FLOPs for one token that sees {FLOPS_CONTEXT:,}, itself included; 2 per multiply-add of "
        "all matrix products, attention's too; masked pairs are not counted.",
        *([f"Not certain: {notes}."] if notes else []),
    ]
    return Table("Parameters and arithmetic", shown, legend, rows)


def _by_value(rows: Rows, key: str) -> str:
    """Lists the models that share each value of a column: "gpt-oss-20b, gpt-oss-120b: without ...; ..."."""
    models: dict[str, list[str]] = {}
    for row in rows:
        if value := row[key]:
            models.setdefault(value, []).append(row["model"])
    return "; ".join(f"{', '.join(names)}: {value}" for value, names in models.items())


def kv_table(rows: Rows) -> Table:
    """Returns the table of cache bytes of one sequence."""

    def bounded(row: Row) -> Row:
        windows = [f"{window['layers']} x {window['tokens']:,}" for window in row["windows"]]
        states = [f"{row['state_layers']} states"] * bool(row["state_layers"])
        return {"bounded": " + ".join(windows + states) or None}

    shown = [
        *columns(model="model"),
        *columns(bounded="bounded"),
        *columns(unit(2**20, 1), kv_fixed_bytes="fixed\nMiB"),
        *columns(unit(2**10, 1), kv_bytes_per_token="KiB\n/ token"),
        *columns(unit(2**30, 2), kv_bytes_32k="32k GiB"),
        *columns(format_tokens, longest_context="max\ncontext"),
        *columns(unit(2**30, 2), kv_bytes_longest_context="GiB"),
    ]
    legend = [
        "bounded: layers x tokens, for layers that keep only their last tokens, and the number of layers with a state.",
        "fixed MiB: the cache of these layers once their windows are full, and the states of layers that keep one "
        "entry for several tokens.",
        "KiB / token: bytes that these entries and all other layers add for each token of context.",
        "32k GiB: at 32,768 tokens, even where the model was trained for fewer.",
        "max context, GiB: at 128k tokens, or at the model's own context where that is shorter. k, KiB, MiB and GiB "
        "are powers of 1024.",
    ]
    return Table("KV cache of one sequence in bfloat16", shown, legend, rows, bounded)


def tiny_throughput_table(rows: Rows) -> Table:
    """Returns the table of speeds of tiny models on this machine, with a line for each model timed in both phases."""
    shown = [
        *columns(model="tiny model"),
        *columns(format_count, prefill="prefill/s"),
        *columns(prefill_range="min-max"),
        *columns(unit(1, 0), tokens_per_s="decode/s"),
        *columns(decode_range="min-max"),
        *columns(unit(1, 0), us_per_layer="us/layer"),
    ]
    legend = [
        "Tiny forms have toy widths, random weights and at least one layer of each kind. They measure the code's "
        "overhead per layer, not the speed of the released models.",
        f"prefill/s: {TINY_PREFILL} tokens in one pass. decode/s: {TINY_DECODE} more, one at a time, with the cache.",
        "us/layer: microseconds for a decoded token, divided by the number of layers.",
        f"{repetitions(rows)}, models taking turns; {measured_on(rows[0])}",
        f"{kernel_summary(used_kernels())}.",
    ]
    prefill = {(row["model"], row["swap"]): row for row in rows if row["phase"] == "prefill"}

    def cells(row: Row) -> Row | None:
        other = prefill.get((row["model"], row["swap"]))
        if row["phase"] != "decode" or other is None:
            return None
        return {
            "prefill": other["tokens_per_s"],
            "prefill_range": min_max(other, "tokens_per_s", format_count),
            "decode_range": min_max(row, "tokens_per_s", unit(1, 0)),
            "us_per_layer": 1e6 / row["tokens_per_s"] / row["layers"],
        }

    return Table("Tokens per second of tiny models on this machine", shown, legend, rows, cells)
