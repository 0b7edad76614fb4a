"""Parameters by part, and the reasons why other sources state other totals."""

from collections.abc import Sequence

from benchmarks.analytic.models import NamedSpec
from benchmarks.analytic.params import ffn_cells, layer_rows, param_row
from benchmarks.options import ModelOptions
from benchmarks.output.estimates import estimate_tables
from benchmarks.output.report import Report, Row, Rows, Table, columns, columns_in_use, named
from benchmarks.output.show import unless_zero
from zoo.cli.tables import Column
from zoo.units import format_count


def command(*, models: ModelOptions, report: Report) -> None:
    """Parameters by part, compared with the Hub's total and the model's name.

    The parts add up to the total. The lines below the tables explain its difference from the Hub's total.
    """
    chosen = models.chosen(estimated=True)
    report.add(*tables(chosen), *estimate_tables(chosen))


def tables(models: Sequence[NamedSpec]) -> list[Table]:
    """Returns the tables of parts, of experts (if any), of kinds of layers, and of differences from Hub totals."""
    rows = [param_row(model) for model in models]
    layers = [row for model in models for row in layer_rows(model)]
    sparse = [row for row in rows if row["routed_params"]]
    reconciled = Table("Totals on the Hub and in the name", [], [reconciliation(row) for row in rows], [])
    return [_parts(rows), *([_experts(sparse)] if sparse else []), _layers(layers), reconciled]


KIND_WIDTH = 20  # characters; the table has at most 80


def _parts(rows: Rows) -> Table:
    shown = [
        *columns(model="model"),
        *columns(format_count, params="total", active_params="active", embedding_params="embed"),
        *columns(unless_zero(format_count), head_params="head"),
        *columns(format_count, attn_params="attn"),
        *columns_in_use(rows, unless_zero(format_count), indexer_params="indexer"),
        *columns(format_count, all_ffn_params="ffn"),
        *columns_in_use(rows, unless_zero(format_count), inputs_params="inputs"),
        *columns(format_count, with_streams="norms"),
        *columns(unless_zero(format_count), other_params="other"),
    ]
    legend = [
        "total: stored parameters of the text model, each once; the parts add up to it. A tied head is in embed.",
        "active: total less the experts that a token is not routed to.",
        "attn: projections, biases and sinks. ffn: dense layers, experts and routers. norms: QK-norms, scales of "
        "layers and the mixing of several residual streams too.",
    ]
    return Table("Parameters by part", shown, legend, rows, _cells)


def _experts(rows: Rows) -> Table:
    shown = [
        *columns(model="model"),
        *columns(unless_zero(format_count), ffn_params="dense"),
        *columns(format_count, routed_params="routed"),
        *columns(unless_zero(format_count), shared_params="shared"),
        *columns(format_count, router_params="router"),
        *columns("{:.1%}".format, active_share="active"),
    ]
    legend = [
        "dense: feed-forwards without experts. routed: experts that a router chooses among.",
        "shared: the expert of every token. active: the share of all parameters that is active.",
    ]
    title = "Feed-forward of the mixtures of experts"
    return Table(title, shown, legend, rows, lambda row: {"active_share": row["active_params"] / row["params"]})


def _layers(rows: Rows) -> Table:
    shown = [
        *columns(model="model", layers="layers"),
        Column("kind", "kind", width=KIND_WIDTH),
        *columns(format_count, params="each", active_params="active"),
        *columns(unless_zero(format_count), with_indexer="attn", all_ffn_params="ffn"),
        *columns_in_use(rows, unless_zero(format_count), inputs_params="inputs"),
        *columns(format_count, with_streams="norms"),
    ]
    legend = [
        "kind: what distinguishes the layers of a model; full: they see all tokens. each, active, attn, ffn, norms: "
        "parameters of one layer; attn includes an indexer."
    ]

    def cells(row: Row) -> Row:
        return _cells(row) | {"with_indexer": row["attn_params"] + row["indexer_params"]}

    return Table("Kinds of layers", shown, legend, rows, cells)


def reconciliation(row: Row) -> str:
    """Returns a line that compares the zoo's count with the Hub's total and with the numbers in the model's name."""
    line = f"{named(row)}: {row['params']:,}"
    if row["hub_beside"]:
        beside = " + ".join(f"{part['params']:,} {part['what']}" for part in row["hub_beside"])
        line += f" + {beside} = {row['hub_params']:,} on the Hub"
    elif row["hub_params"]:
        line += ", as on the Hub"
    if row["hub_note"]:
        line += f" ({row['hub_note']})"
    if claimed := row["name_params"]:
        line += f"; named {format_count(claimed)} ({row['params'] / claimed - 1:+.1%})"
        if active := row["name_active_params"]:
            line += f", {format_count(active)} active ({row['active_params'] / active - 1:+.1%})"
    return line + "."


def _cells(row: Row) -> Row:
    return ffn_cells("params")(row) | {"with_streams": row["norm_params"] + row["streams_params"]}
