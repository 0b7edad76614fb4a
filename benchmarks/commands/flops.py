"""FLOPs by part, and the ceilings that a device puts on prefill and decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.analytic import flops
from benchmarks.analytic.kv import Setting
from benchmarks.analytic.models import chosen
from benchmarks.analytic.roofline import Device
from benchmarks.options import (
    AsFormat,
    Bandwidth,
    Batch,
    CacheType,
    Contexts,
    DeviceSpec,
    Flops,
    IgnoreField,
    Names,
    Swap,
    WeightType,
    the_device,
)
from benchmarks.output.report import Report, Table, named
from benchmarks.output.show import positions, three
from zoo.cli.runner import Debug, Json, Out
from zoo.cli.tables import Column, Format
from zoo.units import format_count

Row = dict[str, Any]
Rows = Sequence[Row]
DEFAULT_CONTEXT = 4096


def command(
    names: Names = None,
    context: Contexts = None,
    batch: Batch = 1,
    device_spec: DeviceSpec = "h100",
    bandwidth: Bandwidth = None,
    flops_: Flops = None,
    dtype: WeightType = torch.bfloat16,
    cache_dtype: CacheType = torch.bfloat16,
    swap: Swap = None,
    ignore_field: IgnoreField = None,
    format: AsFormat = Format.table,
    json: Json = False,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """FLOPs by part, and ceilings on tokens a second.

    A ceiling is the roofline of a device, by --device-spec or by --bandwidth and --flops.
    """
    models, device = chosen(names or [], swap or [], ignore_field or []), the_device(device_spec, bandwidth, flops_)
    setting = Setting(batch, cache_dtype, dtype)
    report = Report.asked(format, json, out)
    for tokens in context or [DEFAULT_CONTEXT]:
        report.add(*tables(flops.rows(models, tokens, setting, device), device))
    report.finish()


def tables(rows: Rows, device: Device) -> Iterator[Table]:
    """Parts of both phases, what masking saves, and the ceilings, of rows at one context."""
    decode, prefill = ([row for row in rows if row["phase"] == phase] for phase in flops.PHASES)
    at, batch = positions(rows[0]["context"]), rows[0]["batch"]
    each = "" if batch == 1 else f", for each of {batch} sequences"
    for title, phase, unit in (
        (f"Decode at {at}: GFLOPs of one token{each}", decode, 1e9 * batch),
        (f"Prefill of {at} tokens: TFLOPs{each}", prefill, 1e12 * batch),
    ):
        yield _parts(title, phase, unit)
        if sparse := [row for row in phase if row["routed_flops"]]:
            yield _experts(sparse, unit)
    yield _masking(f"Prefill of {at} tokens, causal and full square", prefill, 1e12 * batch)
    yield _ceilings(decode, prefill, device)


def _parts(title: str, rows: Rows, unit: float) -> Table:
    show = _in(unit)
    columns = [
        Column("model", "model"),
        Column("projections_flops", "projections", show),
        Column("scores_flops", "scores", show),
        Column("all_ffn_flops", "ffn", show),
        Column("head_flops", "head", show),
        Column("shown_other", "other", show),
        Column("flops", "total", show),
    ]
    legend = [
        "2 FLOPs per multiply-add of all matrix products; masked pairs are not counted.",
        "projections: attention's. scores: queries with keys, and weighted values. ffn: dense layers, experts and "
        "routers. head: of one token.",
    ]
    return Table(title, columns, legend, rows, derive=_all_ffn)


def _all_ffn(row: Row) -> Row:
    total = sum(row[f"{part}_flops"] for part in ("ffn", "routed", "shared", "router"))
    return {"all_ffn_flops": total, "shown_other": row["other_flops"] or None}


def _experts(rows: Rows, unit: float) -> Table:
    columns = [Column("model", "model")]
    columns += [Column(f"{part}_flops", part, _in(unit)) for part in ("ffn", "routed", "shared", "router")]
    legend = ["ffn: of dense layers. routed: of the experts that a token is routed to. shared: of the expert of all."]
    return Table("The same, inside the ffn of mixtures of experts", columns, legend, rows)


def _in(unit: float) -> Callable[[int], str]:
    return lambda value: three(value / unit) if value else ""


def _masking(title: str, rows: Rows, unit: float) -> Table:
    columns = [
        Column("model", "model"),
        Column("flops", "causal TFLOPs", lambda value: three(value / unit)),
        Column("full_square_flops", "full square", lambda value: three(value / unit)),
        Column("more", "more", lambda value: f"{value:+.1%}"),
    ]
    legend = [
        "causal: each token sees those before it, or its window. full square: every pair that a masked dense kernel "
        "computes, as torch counts.",
    ]
    return Table(title, columns, legend, rows, lambda row: {"more": row["full_square_flops"] / row["flops"] - 1})


def _ceilings(decode: Rows, prefill: Rows, device: Device) -> Table:
    first, beside = decode[0], dict(zip(map(id, decode), prefill, strict=True))
    columns = [
        Column("model", "model"),
        Column("tokens_per_s", "decode/s", format_count),
        Column("bound", "bound"),
        Column("flops_per_byte", "FLOP/B", three),
        Column("prefill", "prefill/s", format_count),
        Column("prefill_bound", "bound"),
        Column("prefill_intensity", "FLOP/B", three),
    ]
    legend = [
        f"{device.name}: {device.flops / 1e12:g} TFLOPS, {device.bandwidth / 1e9:,.0f} GB/s. {device.source}",
        f"decode/s, prefill/s: tokens a second over all sequences (batch {first['batch']}) that no implementation can "
        "exceed: the longer of FLOPs / rate and bytes / bandwidth.",
        f"Bytes: weights ({first['weights_dtype']}) but for unused rows of the embedding and experts that no token is "
        f"expected to hit, and the cache ({first['cache_dtype']}).",
        "FLOP/B: FLOPs a byte. bound: by memory or by compute, which begins at "
        f"{three(device.flops / device.bandwidth)} FLOP/B here.",
        *_too_large(decode),
    ]
    keys = {"prefill": "tokens_per_s", "prefill_bound": "bound", "prefill_intensity": "flops_per_byte"}

    def both(row: Row) -> Row:
        return {shown: beside[id(row)][key] for shown, key in keys.items()}

    title = f"Ceilings at {positions(first['context'])}, batch {first['batch']}"
    return Table(title, columns, legend, decode, both)


def _too_large(decode: Rows) -> list[str]:
    large = [named(row) for row in decode if row["fits"] is False]
    return [f"Too large for one: {', '.join(large)}."] if large else []
