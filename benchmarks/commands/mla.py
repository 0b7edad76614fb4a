"""Three ways to decode with latent attention, side by side: cache, FLOPs and measured times."""

from collections.abc import Iterator
from typing import Annotated

import torch
import typer

from benchmarks.analytic.models import NamedSpec, about, one, swapped
from benchmarks.measure import mla
from benchmarks.measure.devices import CPU
from benchmarks.measure.environment import kernel_summary, recorded, used_kernels
from benchmarks.measure.mla import ABSORBED, EXPANDED, LATENT, MLAConfig, Outcome
from benchmarks.measure.timing import Samples
from benchmarks.options import ComputingType, Contexts, Repeat, ReportOptions, Seed, Strings, flag
from benchmarks.output.report import Row, Rows, Table, columns, named
from benchmarks.output.show import format_tokens, measured_on, min_max, three, three_in, unit
from zoo.blocks.mla import MLA
from zoo.errors import CheckFailed, UsageError
from zoo.swaps.tiny import tiny as tiny_form
from zoo.units import format_count

CONTEXTS = (1024, 4096, 32_768)
EXPANDS = {EXPANDED: "each token once", LATENT: "all, at each step", ABSORBED: "nothing"}


def command(
    *,
    name: Annotated[str, typer.Argument(help="A preset, hub id, family or folder with MLA.")] = "deepseek-v3",
    context: Contexts = None,
    tiny: Annotated[bool, flag("At toy widths.", "--tiny")] = False,
    dtype: ComputingType = torch.float32,
    repeat: Repeat = 5,
    seed: Seed = 0,
    swap: Annotated[
        Strings, typer.Option(metavar="CHANGE", help="Change a block first: 'MLA(heads=16)'. Repeat.")
    ] = None,
    to: ReportOptions,
) -> None:
    """Three ways to decode with latent attention, measured.

    One layer's attention, one token at each context (1k, 4k and 32k), on the CPU: with keys and values of all heads
    kept (expanded), with latents that are expanded at each step (latent), and over the latents themselves (absorbed,
    the zoo's MLA).
    All have the same weights, and their outputs must be equal. A variant that does not fit the free memory says so.
    """
    model = swapped(one(name), swap) if swap else one(name)
    spec, dim = latent_attention(model, tiny)
    config = MLAConfig(sorted(set(context or CONTEXTS)), dtype, repeat, seed)
    mla.require_weight_memory(spec, dim, dtype)
    outcomes, samples = list[Outcome](), Samples()
    with to.report() as report:
        try:
            with recorded(report, CPU):
                mla.run(spec, dim, config, outcomes, samples)
        finally:
            measured = mla.rows(spec, dim, config, outcomes, samples)
            rows = [{**about(model), "tiny": tiny, **row} for row in measured]
            report.add(*(tables(rows) if rows else ()))
    if failed := mla.failures(rows):
        raise CheckFailed("; ".join(failed))


def latent_attention(model: NamedSpec, tiny: bool) -> tuple[MLA, int]:
    """The latent attention of a model's first layer that has one, and the model's width. Raises UsageError for none."""
    spec = tiny_form(model.spec) if tiny else model.spec
    if found := next((layer.mixer for layer in spec.layers if isinstance(layer.mixer, MLA)), None):
        return found, spec.dim
    raise UsageError(f"{model.label} has no MLA; one that has: deepseek-v3")


def tables(rows: Rows) -> Iterator[Table]:
    """What each variant keeps of a token; then what it takes at each context."""
    first = rows[0]
    yield _kept(f"One layer's attention of {named(first)}{' at toy widths' if first['tiny'] else ''}", rows)
    yield _measured("Decoding one token, in milliseconds", rows)


def _kept(title: str, rows: Rows) -> Table:
    shown = [
        *columns(variant="variant", keeps="keeps of each token", expands="expands"),
        *columns(unit(1, 0), elements_per_token="elements"),
        *columns(three_in(2**10), kv_bytes_per_token="KiB/token"),
    ]
    heads = f"{rows[0]['heads']} keys and values"

    def kept(row: Row) -> Row:
        variant = row["variant"]
        return {"keeps": heads if variant == EXPANDED else "1 latent and 1 key", "expands": EXPANDS[variant]}

    legend = [f"{format_count(rows[0]['params'])} parameters at width {rows[0]['dim']:,}, the same for all variants."]
    return Table(title, shown, legend, [row for row in rows if row["context"] == rows[0]["context"]], kept)


def _measured(title: str, rows: Rows) -> Table:
    milliseconds = three_in(1e-3)
    shown = [
        *columns(format_tokens, context="context"),
        *columns(variant="variant"),
        *columns(three_in(2**20), kv_bytes="MiB"),
        *columns(three_in(1e9), flops="GFLOPs"),
        *columns(milliseconds, decode_s="ms"),
        *columns(range="min-max"),
        *columns(three, against_absorbed="x absorbed"),
    ]
    legend = [
        "context: tokens that the decoded one sees, itself included. MiB: the cache of them, allocated as the formula "
        "says. GFLOPs: 2 per multiply-add of all matrix products.",
        *_notes(rows),
    ]

    def ranges(row: Row) -> Row:
        return {"range": "too large" if row["too_large"] else min_max(row, "decode_s", milliseconds)}

    return Table(title, shown, legend, rows, ranges)


def _notes(rows: Rows) -> Iterator[str]:
    """What did not fit, whether the outputs are equal, and how the times were measured."""
    first = rows[0]
    if skipped := [
        f"{row['variant']} at {format_tokens(row['context'])} {row['too_large']}" for row in rows if row["too_large"]
    ]:
        yield f"Too large for this machine: {'; '.join(skipped)}."
    if apart := [row["difference"] for row in rows if row["variant"] != ABSORBED and row["difference"] is not None]:
        yield (
            f"Outputs {'NOT equal' if mla.failures(rows) else 'equal'}: at most {max(apart):.1e} from absorbed's, "
            f"relative to its largest; the bound is {first['bound']:.0e}."
        )
    if rounds := sorted({len(row["decode_seconds"]) for row in rows if row["decode_seconds"]}):
        yield f"Medians of {'-'.join(map(str, rounds))} after warm-up, variants taking turns; {measured_on(first)}"
        yield f"{kernel_summary(used_kernels())}."
