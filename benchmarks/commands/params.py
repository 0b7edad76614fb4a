"""Parameters by part, and why others print another number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.analytic import params
from benchmarks.analytic.models import chosen
from benchmarks.options import AsFormat, IgnoreField, Names, Swap
from benchmarks.output.report import Report, Table, named
from zoo.cli.runner import Debug, Json, Out
from zoo.cli.tables import Column, Format
from zoo.units import format_count

Row = dict[str, Any]


def command(
    names: Names = None,
    swap: Swap = None,
    ignore_field: IgnoreField = None,
    format: AsFormat = Format.table,
    json: Json = False,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Parameters by part, and what the Hub and the name say.

    The parts add up to the total, and the lines below them to what the Hub shows.
    """
    report = Report.asked(format, json, out)
    models = chosen(names or [], swap or [], ignore_field or [])
    report.add(*tables(params.rows(models), params.layer_rows(models)))
    report.finish()


def tables(rows: Sequence[Row], layers: Sequence[Row]) -> list[Table]:
    """The parts, the experts where there are any, the kinds of layers, and the reconciliation."""
    sparse = [row for row in rows if row["routed_params"]]
    return [_parts(rows), *([_experts(sparse)] if sparse else []), _layers(layers), _reconciled(rows)]


def _parts(rows: Sequence[Row]) -> Table:
    columns = [
        Column("model", "model"),
        Column("params", "total", format_count),
        Column("active_params", "active", format_count),
        Column("embedding_params", "embed", format_count),
        Column("head_params", "head", _unless_zero),
        Column("attn_params", "attn", format_count),
        Column("all_ffn_params", "ffn", format_count),
        Column("norm_params", "norms", format_count),
        Column("other_params", "other", _unless_zero),
    ]
    legend = [
        "total: stored numbers of the text model, each once; the parts add up to it. A tied head is in embed.",
        "active: total less the experts that a token is not routed to.",
        "attn: projections, biases and sinks. ffn: dense layers, experts and routers. norms: QK-norms too.",
    ]
    return Table("Parameters by part", columns, legend, rows, derive=_all_ffn)


def _all_ffn(row: Row) -> Row:
    parts = ("ffn", "routed", "shared", "router")
    return {"all_ffn_params": sum(row[f"{part}_params"] for part in parts), "other_params": row["other_params"] or None}


def _experts(rows: Sequence[Row]) -> Table:
    columns = [
        Column("model", "model"),
        Column("ffn_params", "dense", _unless_zero),
        Column("routed_params", "routed", format_count),
        Column("shared_params", "shared", _unless_zero),
        Column("router_params", "router", format_count),
        Column("active_share", "active", lambda share: f"{share:.1%}"),
    ]
    legend = [
        "dense: feed-forwards without experts. routed: experts that a router chooses among.",
        "shared: the expert of every token. active: the share of all parameters that is active.",
    ]
    return Table("Feed-forward of the mixtures of experts", columns, legend, rows, derive=_active_share)


def _active_share(row: Row) -> Row:
    return {"active_share": row["active_params"] / row["params"]}


def _layers(rows: Sequence[Row]) -> Table:
    columns = [
        Column("model", "model"),
        Column("layers", "layers"),
        Column("kind", "kind"),
        Column("params", "each", format_count),
        Column("active_params", "active", format_count),
        Column("attn_params", "attn", format_count),
        Column("all_ffn_params", "ffn", format_count),
        Column("norm_params", "norms", format_count),
    ]
    legend = [
        "kind: what sets the layers of a model apart; full: they see all tokens. each: the total of one layer; all "
        "figures here are of one.",
    ]
    return Table("Kinds of layers", columns, legend, rows, derive=_all_ffn)


def _reconciled(rows: Sequence[Row]) -> Table:
    return Table("What the Hub and the name say", [], [reconciliation(row) for row in rows], [])


def reconciliation(row: Row) -> str:
    """Our count, what the Hub shows, and what the name claims, as one line that adds up."""
    ours, name = row["params"], named(row)
    if row["hub_beside"]:
        beside = " + ".join(f"{part['params']:,} {part['what']}" for part in row["hub_beside"])
        line = f"{name}: {ours:,} + {beside} = {row['hub_params']:,} on the Hub"
    else:
        line = f"{name}: {ours:,}" + (", as on the Hub" if row["hub_params"] else "")
    return line + (f" ({row['hub_note']})" if row["hub_note"] else "") + _claim(row)


def _claim(row: Row) -> str:
    claimed, active = row["name_params"], row["name_active_params"]
    if claimed is None:
        return "."
    apart = f" ({row['params'] / claimed - 1:+.1%})"
    told = f"; named {format_count(claimed)}{apart}"
    if active:
        told += f", {format_count(active)} active ({row['active_params'] / active - 1:+.1%})"
    return told + "."


def _unless_zero(number: int) -> str:
    return format_count(number) if number else ""
