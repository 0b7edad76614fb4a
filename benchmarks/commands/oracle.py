"""The costs of a forward pass for other programs, by kind of layer and by operation."""

from typing import Annotated

import typer

from benchmarks.analytic.oracle import oracle_rows
from benchmarks.options import InferenceOptions, ModelOptions, tokens_option, tokens_or_none_option
from benchmarks.output.estimates import estimate_tables
from benchmarks.output.report import Report, Row, Table, columns, columns_in_use
from benchmarks.output.show import format_sequences, format_tokens, on_each, three_in, unless_zero
from zoo.cli.tables import Column
from zoo.errors import unknown
from zoo.model.pass_costs import KEYS

BY = Annotated[str, typer.Option(metavar="LIST", help="Keys of the rows: layer, op, layer,op or total.")]


def command(
    *,
    by: BY = "layer,op",
    past: Annotated[
        int | None,
        tokens_or_none_option("--past", help="Tokens in the cache of each sequence before. [4095, or what fits]"),
    ] = None,
    new: Annotated[int, tokens_option("--new", help="New tokens of each sequence; 1: decode.")] = 1,
    inference: InferenceOptions,
    models: ModelOptions,
    report: Report,
) -> None:
    """The costs of a forward pass by layer and operation, for programs.

    FLOPs, and bytes of weights, cache, residual stream and collectives. The rows add up to the totals of `kv` and
    `flops`. docs/oracle.md explains the columns.
    """
    keys = parse_keys(by)
    chosen = inference.divisible(models.chosen(estimated=True))
    rows = [oracle_rows(model, past, new, inference, keys) for model in chosen]  # all, before any is printed
    report.add(*(table(each, model.label) for model, each in zip(chosen, rows, strict=True)))
    report.add(*estimate_tables(chosen, inference))


def parse_keys(text: str) -> list[str]:
    """Parses keys, separated by commas; "total" means none. Raises UsageError for other words."""
    words = [word for word in (part.strip().lower() for part in text.split(",")) if word and word != "total"]
    for word in words:
        if word not in KEYS:
            raise unknown("key of --by", word, [*KEYS, "total"])
    return words


def table(rows: list[Row], label: str) -> Table:
    """Returns the table of one model's pass."""
    first = rows[0]
    megabytes = unless_zero(three_in(1e6))
    shown = [Column("layer", "layer", width=18), *columns(op="operation")]
    shown += columns(unless_zero(three_in(1e9)), flops="GFLOPs")
    shown += columns(megabytes, weight_bytes="weights\nMB", cache_read_bytes="read\nMB")
    shown += columns(megabytes, cache_written_bytes="written\nMB", activation_bytes="stream\nMB")
    shown += columns_in_use(rows, megabytes, sent_bytes="sent\nMB")
    legend = [
        f"weights ({first['weights_dtype']}), read once; of experts, those that some token is expected to be routed "
        f"to. read, written: the cache ({first['cache_dtype']}). stream: the residual stream, read and written once by "
        "each branch. 1 MB = 10^6 bytes.",
        "GFLOPs: 2 per multiply-add of matrix products, in 10^9.",
    ]
    at = f"{format_tokens(first['new'])} new after {format_tokens(first['past'])}, {format_sequences(first['batch'])}"
    return Table(f"{label}: {at}{on_each(first['tp'])}", shown, legend, rows)
