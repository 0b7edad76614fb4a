"""Two architectures side by side: only the differences."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer

from benchmarks import options
from benchmarks.analytic.compare import (
    KV_CONTEXTS,
    difference_rows,
    field_in_words,
    figure_rows,
    structure_rows,
    unknown_rows,
)
from benchmarks.analytic.kv import InferenceConfig, crossing_row
from benchmarks.analytic.models import NamedSpec, one, swapped
from benchmarks.analytic.roofline import Device
from benchmarks.measure.benchmark_models import BenchmarkModel, Variant
from benchmarks.measure.runners import workloads
from benchmarks.measure.throughput import measure_throughput, throughput_config
from benchmarks.output.estimates import estimate_tables
from benchmarks.output.report import Report, Row, Table, columns
from benchmarks.output.show import describe_crossing, format_sequences, format_tokens
from zoo.cli.tables import Column
from zoo.errors import UsageError
from zoo.units import dtype_name, format_bytes, format_count


def command(
    *,
    names: Annotated[
        options.Strings,
        typer.Argument(help="Two presets, families, hub ids or folders, or one with --swap.", metavar="A B"),
    ] = None,
    context: Annotated[int, options.tokens_option(help="Context for FLOPs and ceilings.")] = 4096,
    inference: options.InferenceOptions,
    peak: options.DeviceOptions,
    changes: options.SwapOptions,
    measure: Annotated[
        bool, options.flag("Also measure both here: a prefill of 512 tokens and a decode of 128.", "--measure")
    ] = False,
    tiny: options.Tiny = False,
    layers: options.Layers = None,
    report: Report,
) -> None:
    """Differences between two architectures, in blocks and costs.

    With --swap, a model is compared with its swapped version. --measure times both in turns, with random weights in
    --dtype; --tiny and --layers change the models that are timed.
    """
    device = peak.device()
    models = pair(names or [], changes.swap or [], changes.ignore_field or [])
    report.add(*tables(*models, context, inference, device), *estimate_tables(models, inference))
    if measure:
        once = {model.label: model for model in models}
        measured = [Variant(tiny, layers).of(BenchmarkModel(model)) for model in once.values()]
        works = workloads(512, 128, [0], inference.batch)
        measure_throughput(report, measured, throughput_config(works, inference.dtype(), tiny=tiny))


def pair(names: Sequence[str], swaps: Sequence[str], ignore_fields: Sequence[str]) -> tuple[NamedSpec, NamedSpec]:
    """Returns the two models to compare. Raises UsageError unless there are two, or one with swaps."""
    if len(names) != (1 if swaps else 2):
        raise UsageError("compare takes two models, or one with --swap: llama3 qwen3, or qwen3 --swap rope=NoPE")
    first = one(names[0], ignore_fields, estimated=True)
    if swaps:
        return first, swapped(first, swaps)
    second = one(names[1], ignore_fields, estimated=True)
    if first.name == second.name and first.spec != second.spec:  # of two files or folders
        first, second = replace(first, name=names[0]), replace(second, name=names[1])
    return first, second


def tables(first: NamedSpec, second: NamedSpec, context: int, config: InferenceConfig, device: Device) -> list[Table]:
    """Returns the tables of differences in structure, specs and costs, and of the model with the smaller cache."""
    row = crossing_row(first, second, config)
    crossing = Table("Model with the smaller cache, by tokens of context", [], [describe_crossing(row)], [row])
    return [
        _structure(first, second),
        _differences(first, second),
        _figures(first, second, context, config, device),
        crossing,
        *([_unknown(rows, first, second)] if (rows := unknown_rows(first, second)) else []),
    ]


def _structure(first: NamedSpec, second: NamedSpec) -> Table:
    rows = structure_rows(first, second)
    shown = [Column("words", "part", width=14), Column("sentence", second.label, width=62)]
    legend = [f"Compared with {first.label}." if rows else "Their structure is the same."]

    def in_words(row: Row) -> Row:
        return {"words": field_in_words(row["part"])}

    return Table("Differences in structure", shown if rows else [], legend, rows, in_words)


def _differences(first: NamedSpec, second: NamedSpec) -> Table:
    rows = difference_rows(first, second)
    shown = [
        Column("words", "field", width=22),
        Column("value", first.label, width=26),
        Column("other", second.label, width=26),
    ]
    note = "Fields of the specs that differ. For a field of layers, 'V in N' is the value V in N layers."
    legend = [note if rows else "No field differs."]
    legend += [f"{second.label} is {second.name} after --swap {second.swap}."] if second.swap else []
    legend += [f"The swap dropped: {second.dropped}."] if second.dropped else []
    return Table("Sizes and details", shown if rows else [], legend, rows)


def _unknown(rows: list[Row], first: NamedSpec, second: NamedSpec) -> Table:
    shown = [
        Column("field", "field", width=28),
        Column("value", first.label, width=24),
        Column("other", second.label, width=24),
    ]
    return Table("Fields that are not understood", shown, ["They may change the costs above."], rows)


def _figures(first: NamedSpec, second: NamedSpec, context: int, config: InferenceConfig, device: Device) -> Table:
    rows = figure_rows(first, second, context, config, device)
    if not rows:
        return Table("Costs", [], ["All costs are the same."], [])
    shown = columns(figure="cost", shown=first.label, shown_other=second.label)
    shown += columns("{:.3g}".format, ratio="ratio")
    sequences = format_sequences(config.batch)
    legend = [
        f"ratio: {second.label} / {first.label}. KV cache in {dtype_name(config.cache)}: fixed and per token for one "
        f"sequence, at {', '.join(map(format_tokens, KV_CONTEXTS))} tokens for {sequences}, even beyond a model's own "
        "context.",
        f"decode: one token that sees {format_tokens(context)}; prefill: {format_tokens(context)} tokens. ceiling: "
        f"tokens/s of {sequences} on {device.name}, weights in {config.weights.name}, even if they do not fit.",
    ]

    def with_units(row: Row) -> Row:
        show = format_bytes if row["unit"] == "bytes" else format_count
        return {"shown": show(row["value"]), "shown_other": show(row["other"])}

    return Table("Costs", shown, legend, rows, with_units)
