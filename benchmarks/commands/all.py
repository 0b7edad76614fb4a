"""All tables that follow from the specs, in one document."""

from benchmarks.analytic.models import one
from benchmarks.analytic.params import cost_row
from benchmarks.commands import costs, flops, kv, params
from benchmarks.options import MEMORY, DeviceOptions, InferenceOptions, Memory, ModelOptions, ReportOptions


def command(
    *,
    inference: InferenceOptions,
    peak: DeviceOptions,
    memory: Memory = MEMORY,
    models: ModelOptions,
    to: ReportOptions,
) -> None:
    """Every static table: costs, params, kv and flops.

    Each table uses the contexts of its verb; call a verb by itself to choose them.
    """
    chosen, device, against = models.chosen(), peak.device(), one(kv.AGAINST)
    with to.report() as report:
        report.add(*costs.static_tables([*map(cost_row, chosen)]))
        report.add(*params.tables(chosen))
        report.add(*kv.tables(chosen, [kv.DEFAULT_CONTEXT], against, memory, inference))
        report.add(*flops.tables(chosen, flops.DEFAULT_CONTEXT, inference, device))
