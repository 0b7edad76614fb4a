"""Two architectures side by side: only what differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import typer

from benchmarks.analytic import compare, kv
from benchmarks.analytic.compare import KV_CONTEXTS
from benchmarks.analytic.kv import Setting
from benchmarks.analytic.models import Model, one, swapped
from benchmarks.analytic.roofline import Device
from benchmarks.commands.kv import whose
from benchmarks.measure.benchmark_models import BenchmarkModel, Variant
from benchmarks.measure.runners import EAGER
from benchmarks.measure.throughput import measure_throughput, throughput_config
from benchmarks.options import (
    AsFormat,
    Bandwidth,
    Batch,
    CacheType,
    DeviceSpec,
    Flops,
    IgnoreField,
    Layers,
    Swap,
    Tiny,
    WeightType,
    the_device,
    tokens,
)
from benchmarks.output.report import Report, Table
from benchmarks.output.show import positions
from zoo.cli.runner import Debug, Json, Out, emit
from zoo.cli.tables import Column, Format
from zoo.errors import UsageError
from zoo.units import dtype_name, format_bytes, format_count

Row = dict[str, Any]
Pair = Annotated[
    list[str] | None,
    typer.Argument(help="Two presets, families, hub ids or folders; or one, with --swap.", metavar="A B"),
]
Context = Annotated[int, typer.Option("--context", parser=tokens, metavar="TOKENS", help="Of FLOPs and ceilings.")]
Measure = Annotated[bool, typer.Option("--measure", help="Measure both on this machine, too: pp512 and tg128.")]
Docs = Annotated[bool, typer.Option("--docs", help="Write docs/comparisons.md: six pairs, as Markdown.")]
PAIRS = (
    ("llama3.1-8b", "olmo2-7b"),
    ("olmo2-32b", "gemma3-27b"),
    ("gemma3-27b", "mistral-small-3.1-24b"),
    ("llama3.2-1b", "qwen3-0.6b"),
    ("deepseek-v3-671b", "qwen3-235b-a22b"),
    ("smollm3-3b", "qwen3-4b"),
)
INTRODUCTION = """# Comparisons

Pairs of architectures, and only what differs between the two. Written by `make docs`; a test holds it to what
`python -m benchmarks compare A B` prints."""


def command(
    names: Pair = None,
    context: Context = 4096,
    batch: Batch = 1,
    device_spec: DeviceSpec = "h100",
    bandwidth: Bandwidth = None,
    flops_: Flops = None,
    dtype: WeightType = torch.bfloat16,
    cache_dtype: CacheType = torch.bfloat16,
    swap: Swap = None,
    ignore_field: IgnoreField = None,
    measure: Measure = False,
    tiny: Tiny = False,
    layers: Layers = None,
    docs: Docs = False,
    format: AsFormat = Format.table,
    json: Json = False,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Two architectures: blocks and costs that differ.

    With --swap a model is compared with its own swapped form. --measure times both, with random weights in --dtype, in
    turns; --tiny and --layers then say in which form.
    """
    setting, device = Setting(batch, cache_dtype, dtype), the_device(device_spec, bandwidth, flops_)
    if docs:
        emit(document(context, setting, device), out)
        return
    first, second = pair(names or [], swap or [], ignore_field or [])
    report = Report.asked(format, json, out)
    report.add(*tables(first, second, context, setting, device))
    try:
        if measure:
            once = {model.label: model for model in (first, second)}
            subjects = [Variant(tiny, layers).of(BenchmarkModel(model)) for model in once.values()]
            measure_throughput(report, subjects, throughput_config(dtype, batch=batch, tiny=tiny), [EAGER])
    finally:
        report.finish()


def pair(names: Sequence[str], swaps: Sequence[str], ignore_fields: Sequence[str]) -> tuple[Model, Model]:
    """The two models to compare. Raises UsageError unless there are two, or one with swaps."""
    if len(names) != (1 if swaps else 2):
        raise UsageError("compare takes two models, or one with --swap: llama3 qwen3, or qwen3 --swap rope=NoPE")
    first = one(names[0], ignore_fields)
    return first, swapped(first, swaps) if swaps else one(names[1], ignore_fields)


def tables(first: Model, second: Model, context: int, setting: Setting, device: Device) -> list[Table]:
    """What differs in the specs, in costs, and whose cache is the smaller."""
    return [
        _differences(first, second),
        _figures(first, second, compare.figure_rows(first, second, context, setting, device), context, setting, device),
        _crossing(first, second, setting),
    ]


def document(context: int, setting: Setting, device: Device) -> str:
    """docs/comparisons.md."""
    parts = [INTRODUCTION]
    for names in PAIRS:
        first, second = map(one, names)
        parts.append(f"## {first.label} and {second.label}")
        parts += [table.text(Format.md) for table in tables(first, second, context, setting, device)]
    return "\n\n".join(parts)


def _differences(first: Model, second: Model) -> Table:
    columns = [
        Column("field", "field", width=18),
        Column("value", first.label, width=28),
        Column("other", second.label, width=28),
    ]
    rows = compare.difference_rows(first, second)
    legend = [
        "Fields of the specs, those of attn and ffn by layer: 4 in 10 is 4 in 10 layers. The others are the same."
    ]
    dropped = [f"{second.label} is {second.name} after --swap {second.swap}."] if second.swap else []
    dropped += [f"The swap dropped: {second.dropped}."] if second.dropped else []
    return Table("What differs", columns if rows else [], [*(legend if rows else ["Nothing."]), *dropped], rows)


def _figures(first: Model, second: Model, rows: Sequence[Row], context: int, setting: Setting, device: Device) -> Table:
    columns = [
        Column("figure", "cost"),
        Column("shown", first.label),
        Column("shown_other", second.label),
        Column("ratio", "ratio", lambda ratio: f"{ratio:.3g}"),
    ]
    sequences = "one sequence" if setting.batch == 1 else f"{setting.batch} sequences"
    legend = [
        f"ratio: {second.label} over {first.label}. Cache in {dtype_name(setting.cache)}, fixed and each token of one "
        f"sequence, at {', '.join(map(positions, KV_CONTEXTS))} of {sequences}, also where a model is for fewer.",
        f"decode: a token that sees {positions(context)}; prefill: {positions(context)} tokens. ceiling: tokens/s of "
        f"{sequences} on {device.name}, weights in {dtype_name(setting.weights)}, whether they fit or not.",
    ]
    if not rows:
        return Table("What it costs", [], ["The same."], [])
    return Table("What it costs", columns, legend, rows, derive=_with_units)


def _with_units(row: Row) -> Row:
    show = format_bytes if row["unit"] == "bytes" else format_count
    return {"shown": show(row["value"]), "shown_other": show(row["other"])}


def _crossing(first: Model, second: Model, setting: Setting) -> Table:
    rows = kv.crossing_rows([first], second, setting.cache)
    return Table("Whose cache is smaller, by tokens of context", [], [whose(rows[0])], rows)
