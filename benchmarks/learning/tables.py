"""The tables of a comparison, 80 characters wide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.learning.comparison import LENGTH, Results
from benchmarks.learning.intervals import NO_DIFFERENCE
from benchmarks.learning.rows import BITS, difference_rows, figure_rows, model_rows, size_word
from benchmarks.learning.tasks import TASKS
from benchmarks.output.report import Row, Rows, Table, columns
from benchmarks.output.show import unit, unless_zero
from zoo.cli.tables import Column
from zoo.units import format_count

WHAT = Column("what", "model", width=12)
WIDE = replace(WHAT, width=16)


def tables(results: Results) -> Iterator[Table]:
    """Yields the tables of models, of each task except text, of differences, of learning rates and of budgets."""
    models, figures, differences = model_rows(results), figure_rows(results), difference_rows(results)
    yield learned(models)
    for task in results.config.tasks:
        if rows := [row for row in figures if row["task"] == task]:
            yield by_size(task, rows, results.config.task_rate)
    if differences:
        yield compared(differences)
    if any(row["sweep"] for row in models):
        yield swept(models)
    yield budgets(models)


def what(row: Row) -> str:
    """Returns a model's name with its swaps."""
    return f"{row['model']} {row['swap']}" if row.get("swap") else row["model"]


def data_line(row: Row) -> str:
    """Returns the legend's line on the text that was learned."""
    return f"Text: {row['data']}, {row['data_hash']}."


def learned(rows: Rows) -> Table:
    """Returns the main table: the costs of each model and its bits per byte."""
    first = rows[0]
    shown = [
        WHAT,
        *columns(format_count, params="params", active_params="active"),
        *columns(unless_zero(unit(2**10, 1)), kv_fixed_bytes="fixed\nKiB"),
        *columns("{:,}".format, kv_bytes_per_token="KV B/\ntoken"),
        *columns(format_count, flops_per_token="FLOPs/\ntoken"),
        *columns("{:.2g}".format, learning_rate="rate"),
        *columns(bits="bits per\nbyte"),
        *columns(format_count, tokens_per_s="tok/s"),
    ]
    on_text = f"after {format_count(first['tokens'])} tokens (bytes) of training in steps of {first['batch']} x "
    legend = [
        f"bits per byte: on held-out text {on_text}{first['context']}; mean of {first['seeds']} seeds and its 95 % "
        "interval. This ranks how fast models learn, not how good they become: more --tokens say more.",
        "fixed KiB, KV B/token: cache of one sequence in bfloat16, of layers with a window once it is full, and of the "
        f"others. FLOPs/token: of a forward pass, mean over a context of {first['context']}; training takes three "
        "times as many. tok/s: of training, one thread.",
        data_line(first),
    ]
    bits = ("bits_per_byte", "bits_per_byte_low", "bits_per_byte_high")

    def derive(row: Row) -> Row:
        return {"what": what(row), "bits": plus_minus(row, bits, ".3f")}

    legend = legend if any(row["bits_per_byte"] for row in rows) else legend[1:]
    if dropped := dict.fromkeys(f"{what(row)} has no {row['dropped']}" for row in rows if row["dropped"]):
        legend.append(f"Dropped: {'; '.join(dropped)}.")
    return Table("What models learn at an equal budget", shown, legend, rows, derive, star_notes=False)


def plus_minus(row: Row, keys: Sequence[str], show: str, scale: float = 1) -> str | None:
    """Returns a mean and the half width of its interval: 1.832 ±0.021."""
    mean, low, high = (row[key] for key in keys)
    if mean is None:
        return None
    text = format(mean * scale, show)
    return text if low is None else f"{text} ±{format((high - low) / 2 * scale, show)}"


def by_size(task: str, rows: Rows, learning_rate: float) -> Table:
    """Returns the table of a task, with a column for each of its sizes. `learning_rate`: the task's learning rate."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    cells: dict[str, Row] = {}
    for row in rows:
        show = (".3f", 1) if row["unit"] == BITS else (".1f", 100)
        text = plus_minus(row, ("mean", "low", "high"), *show)
        cells.setdefault(what(row), {"what": what(row)})[f"size_{row['size']}"] = text
    shown = [WIDE, *columns(**{f"size_{size}": f"{size} {size_word(task)}" for size in sizes})]
    if task == LENGTH:
        title = "Beyond the trained context: bits per byte"
        legend = ["Measured in the second half of a context. The column says how many times the trained one it is."]
        legend.append(data_line(rows[0]))
    else:
        title = f"{TASKS[task].title.capitalize()}: accuracy in %"
        legend = [
            f"A guess has {rows[0]['chance']:.1%}. Each model has two layers and half the parameters, and is trained "
            f"at all sizes for {TASKS[task].steps} steps at a learning rate of {learning_rate:g}."
        ]
    legend.append("Means over the seeds and their 95 % intervals.")
    # The first row of a model shows all its sizes.
    return Table(title, shown, legend, rows, lambda row: cells.pop(what(row), None), star_notes=False)


def compared(rows: Rows) -> Table:
    """Returns the table of paired differences from the first model."""
    against = rows[0]["against"]
    shown = [WIDE, *columns(measure="measure"), *columns(spread="difference"), *columns(words="in words")]
    legend = [
        f"The model's figure less that of {against}, in bits per byte or in points of accuracy. Equal seeds see equal "
        "data in equal order. The interval is the one that Holm's procedure tests at 95 %, over the models compared in "
        "one measure.",
        f'"{NO_DIFFERENCE}": the interval contains zero, so other seeds could reverse it. That is not "no difference".',
    ]
    texts = [row for row in rows if row["data"]]
    legend += [data_line(texts[0])] if texts else []

    def derive(row: Row) -> Row:
        show, scale = ("+.3f", 1) if row["unit"] == BITS else ("+.1f", 100)
        half = format((row["high"] - row["low"]) / 2 * scale, show[1:])
        return {"what": what(row), "spread": f"{format(row['mean'] * scale, show)} ±{half}"}

    return Table(f"Differences from {against}", shown, legend, rows, derive, star_notes=False)


def swept(rows: Rows) -> Table:
    """Returns the table of the learning rates that were tried for each model."""
    rates = sorted({each["learning_rate"] for row in rows for each in row["sweep"]})

    def derive(row: Row) -> Row:
        tried = {each["learning_rate"]: each["bits_per_byte"] for each in row["sweep"]}
        losses = {rate: "diverged" if loss is None else f"{loss:.3f}" for rate, loss in tried.items()}
        shown = {f"rate_{rate}": losses.get(rate) for rate in rates}
        return {"what": what(row), "edge": f"best is the {row['sweep_edge']}" if row["sweep_edge"] else None, **shown}

    shown = [WIDE, *columns(**{f"rate_{rate}": f"{rate:.2g}" for rate in rates}), *columns(edge="")]
    legend = [
        "Bits per byte on the tuning text, which no result is measured on, after half of the tokens and with a seed of "
        "its own. A model is compared at its best rate. If that was the lowest or highest, the next rate was tried too."
    ]
    return Table("Learning rates tried", shown, legend, rows, derive, star_notes=False)


def budgets(rows: Rows) -> Table:
    """Returns the table of scaled-down models: layers, width, and each budget with the gap to it."""

    def derive(row: Row) -> Row:
        met = (f"{b['met']:,} {b['unit']} ({b['met'] / b['wanted'] - 1:+.2%})" for b in row["budgets"])
        return {"what": what(row), "met": "; ".join(met)}

    shown = [WIDE, *columns(layers="layers", dim="dim"), Column("met", "budget met (gap)", width=42)]
    legend = [f"{what(row)}: {row['layer_pattern']}." for row in rows]
    return Table("Scaled-down models", shown, legend, rows, derive, star_notes=False)
