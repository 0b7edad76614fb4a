"""Tables about estimated models."""

from collections.abc import Iterator, Sequence

from benchmarks.analytic.estimates import FLOPS_CONTEXT, KV_CONTEXT, bound_rows, ground_rows, stored_rows
from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import NamedSpec
from benchmarks.output.report import Row, Table, columns
from benchmarks.output.show import format_sequences, format_tokens
from zoo.cli.tables import Column
from zoo.units import dtype_name, format_bytes, format_count

GROUND_WIDTHS = (13, 26, 35)  # characters; the table has at most 80


def estimate_tables(models: Sequence[NamedSpec], config: InferenceConfig = InferenceConfig()) -> Iterator[Table]:
    """Yields the tables about each estimated model among `models`: its bounds, the parameters in its files, and what
    the estimate rests on."""
    for model in models:
        if model.estimate is None or model.swap:
            continue
        yield _bounds(model, config)
        if rows := list(stored_rows(model)):
            yield _stored(model, rows)
        yield _grounds(model)


def _bounds(model: NamedSpec, config: InferenceConfig) -> Table:
    rows = bound_rows(model, config)
    open_questions = bool(model.estimate and model.estimate.questions)
    shown = columns(figure="cost", shown="estimate")
    shown += columns(lowest="lowest", highest="highest") if open_questions else []
    sequences = format_sequences(config.batch)
    legend = [
        f"KV cache in {dtype_name(config.cache)}: fixed and per token for one sequence, at "
        f"{format_tokens(KV_CONTEXT)} tokens for {sequences}. FLOPs: one decoded token at "
        f"{format_tokens(FLOPS_CONTEXT)}.",
        "lowest, highest: over all answers to the questions below that the config leaves open."
        if open_questions
        else "The fields that were understood leave no question open.",
    ]

    def with_units(row: Row) -> Row:
        show = format_bytes if row["unit"] == "bytes" else format_count
        return {"shown": show(row["value"]), "lowest": show(row["low"]), "highest": show(row["high"])}

    return Table(f"Estimate of {model.name}", shown, legend, rows, with_units)


def _stored(model: NamedSpec, rows: list[Row]) -> Table:
    shown = columns(group="parameters") + columns("{:,}".format, stored="in the files", estimate="estimate")
    shown += columns("{:+,}".format, off_by="difference")
    total = sum(row["stored"] for row in rows if row["estimate"] is not None)
    legend = [
        f"in the files: by the headers of the safetensors files, {total:,} in all, and exact. Experts include shared "
        "ones and routers.",
        "difference: estimate - in the files. Where it is not 0, the other estimated costs may differ too.",
    ]
    return Table(f"Parameters of {model.name}, stored and estimated", shown, legend, rows)


def _grounds(model: NamedSpec) -> Table:
    rows = list(ground_rows(model))
    first, second, third = GROUND_WIDTHS
    shown = [Column("ground", "basis", width=first), Column("field", "field", width=second)]
    shown.append(Column("meaning", "meaning or value", width=third))
    legend = [
        "nearest: the published model with the fewest differences in structure, and those differences.",
        "question: what the fields leave open; the first answer is taken. not understood: may change the numbers.",
    ]
    return Table(f"What the estimate of {model.name} rests on", shown, legend, rows)
