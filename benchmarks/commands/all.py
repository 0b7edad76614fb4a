"""Everything that follows from the specs, in one document."""

from __future__ import annotations

import torch

from benchmarks.analytic import costs, flops, params
from benchmarks.analytic.kv import Setting
from benchmarks.analytic.models import chosen, one
from benchmarks.commands import flops as flops_verb
from benchmarks.commands import kv as kv_verb
from benchmarks.commands import params as params_verb
from benchmarks.options import (
    AsFormat,
    Bandwidth,
    Batch,
    CacheType,
    DeviceSpec,
    Flops,
    IgnoreField,
    Memory,
    Names,
    Swap,
    WeightType,
    the_device,
)
from benchmarks.output import tables
from benchmarks.output.report import Report
from zoo.cli.runner import Debug, Json, Out
from zoo.cli.tables import Format


def command(
    names: Names = None,
    batch: Batch = 1,
    device_spec: DeviceSpec = "h100",
    bandwidth: Bandwidth = None,
    flops_: Flops = None,
    dtype: WeightType = torch.bfloat16,
    cache_dtype: CacheType = torch.bfloat16,
    memory: Memory = 80 * 2**30,
    swap: Swap = None,
    ignore_field: IgnoreField = None,
    format: AsFormat = Format.table,
    json: Json = False,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Every static table: costs, params, kv and flops.

    Each at its verb's own contexts; call a verb by itself to choose them.
    """
    models, setting = chosen(names or [], swap or [], ignore_field or []), Setting(batch, cache_dtype, dtype)
    device = the_device(device_spec, bandwidth, flops_)
    report = Report.asked(format, json, out)
    report.add(*tables.static(costs.rows(models)))
    report.add(*params_verb.tables(params.rows(models), params.layer_rows(models)))
    report.add(*kv_verb.tables(models, [kv_verb.DEFAULT_CONTEXT], one(kv_verb.AGAINST), memory, setting))
    report.add(*flops_verb.tables(flops.rows(models, flops_verb.DEFAULT_CONTEXT, setting, device), device))
    report.finish()
