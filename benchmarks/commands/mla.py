"""Three forms of decoding with latent attention, side by side: what each keeps, computes and takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
import typer

from benchmarks.analytic.costs import about
from benchmarks.analytic.models import Model, one, swapped
from benchmarks.measure import mla
from benchmarks.measure.devices import CPU
from benchmarks.measure.environment import chosen_kernels, kernel_summary, recorded
from benchmarks.measure.mla import ABSORBED, EXPANDED, LATENT, MLAConfig, Outcome
from benchmarks.measure.timing import Samples
from benchmarks.options import AsFormat, ComputingType, Contexts, Repeat, Seed
from benchmarks.output.report import Report, Table, named
from benchmarks.output.show import positions, three, three_in, unit
from zoo.blocks.mla import MLA
from zoo.cli.runner import Debug, Json, Out
from zoo.cli.tables import Column, Format
from zoo.core.devices import machine
from zoo.errors import CheckFailed, UsageError
from zoo.swaps.tiny import tiny as toy
from zoo.units import format_count

Rows = Sequence[dict[str, Any]]
CONTEXTS = (1024, 4096, 32_768)
Name = Annotated[str, typer.Argument(help="A preset, hub id, family or folder with MLA.")]
Tiny = Annotated[bool, typer.Option("--tiny", help="At toy widths.")]
Swap = Annotated[
    list[str] | None,
    typer.Option("--swap", metavar="CHANGE", help="Change a block first: 'MLA(heads=16)'. Repeat."),
]
EXPANDS = {EXPANDED: "each token once", LATENT: "all, at each step", ABSORBED: "nothing"}


def command(
    name: Name = "deepseek-v3",
    context: Contexts = None,
    tiny: Tiny = False,
    dtype: ComputingType = torch.float32,
    repeat: Repeat = 5,
    seed: Seed = 0,
    swap: Swap = None,
    format: AsFormat = Format.table,
    json: Json = False,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Three ways to decode with latent attention, measured.

    One layer's attention, one token at each context (1k, 4k and 32k), on the CPU: with keys and values of all heads
    kept (expanded), with latents that are expanded at each step (latent), and over the latents themselves (absorbed,
    the zoo's MLA).
    All have the same weights, and their outputs must be equal. A form that does not fit the free memory says so.
    """
    model = swapped(one(name), swap) if swap else one(name)
    spec, dim = attention(model, tiny)
    config = MLAConfig(sorted(set(context or CONTEXTS)), dtype, repeat, seed)
    mla.require_weight_memory(spec, dim, config)
    report = Report.asked(format, json, out)
    outcomes, samples = list[Outcome](), Samples()
    try:
        with recorded(report, CPU):
            mla.run(spec, dim, config, outcomes, samples)
    finally:
        found = mla.rows(spec, dim, config, outcomes, samples)
        rows = [{**about(model), "tiny": tiny, **row} for row in found]
        report.add(*(tables(rows) if rows else ()))
        report.finish()
    if failed := mla.failures(rows):
        raise CheckFailed("; ".join(failed))


def attention(model: Model, tiny: bool) -> tuple[MLA, int]:
    """The latent attention of a model's first layer that has one, and the model's width."""
    spec = toy(model.spec) if tiny else model.spec
    found = next((layer.mixer for layer in spec.layers if isinstance(layer.mixer, MLA)), None)
    if found is None:
        raise UsageError(f"{model.label} has no MLA; one that has: deepseek-v3")
    return found, spec.dim


def tables(rows: Rows) -> Iterator[Table]:
    """What each form keeps of a token; then what it takes at each context."""
    first = rows[0]
    yield _kept(f"One layer's attention of {named(first)}{' at toy widths' if first['tiny'] else ''}", rows)
    yield _measured("Decoding one token, in milliseconds", rows)


def _kept(title: str, rows: Rows) -> Table:
    columns = [
        Column("variant", "variant"),
        Column("keeps", "keeps of each token"),
        Column("expands", "expands"),
        Column("elements_per_token", "elements", unit(1, 0)),
        Column("kv_bytes_per_token", "KiB/token", three_in(2**10)),
    ]
    heads = f"{rows[0]['heads']} keys and values"

    def words(row: dict[str, Any]) -> dict[str, str]:
        return {
            "keeps": heads if row["variant"] == EXPANDED else "1 latent and 1 key",
            "expands": EXPANDS[row["variant"]],
        }

    legend = [f"{format_count(rows[0]['params'])} parameters at width {rows[0]['dim']:,}, the same for all variants."]
    return Table(title, columns, legend, list({row["variant"]: row for row in rows}.values()), words)


def _measured(title: str, rows: Rows) -> Table:
    columns = [
        Column("context", "context", positions),
        Column("variant", "variant"),
        Column("kv_bytes", "MiB", three_in(2**20)),
        Column("flops", "GFLOPs", three_in(1e9)),
        Column("decode_s", "ms", three_in(1e-3)),
        Column("range", "min-max"),
        Column("against_absorbed", "x absorbed", three),
    ]

    def between(row: dict[str, Any]) -> dict[str, str]:
        if row["too_large"]:
            return {"range": "too large"}
        return {"range": f"{three(row['decode_s_min'] * 1e3)}-{three(row['decode_s_max'] * 1e3)}"}

    legend = [
        "context: tokens that the decoded one sees, itself included. MiB: what is kept of them, allocated as the "
        "formula says. GFLOPs: 2 per multiply-add of all matrix products.",
        *_too_large(rows),
        *_equality(rows),
        *_method(rows),
    ]
    return Table(title, columns, legend, rows, between)


def _too_large(rows: Rows) -> Iterator[str]:
    left_out = [
        f"{row['variant']} at {positions(row['context'])} {row['too_large']}" for row in rows if row["too_large"]
    ]
    if left_out:
        yield f"Too large for this machine: {'; '.join(left_out)}."


def _equality(rows: Rows) -> Iterator[str]:
    apart = [row["difference"] for row in rows if row["variant"] != ABSORBED and row["difference"] is not None]
    if apart:
        verdict = "NOT equal" if mla.failures(rows) else "equal"
        yield (
            f"Outputs {verdict}: at most {max(apart):.1e} from absorbed's, of its largest; the bound is "
            f"{rows[0]['bound']:.0e}."
        )


def _method(rows: Rows) -> Iterator[str]:
    rounds = {len(row["decode_seconds"]) for row in rows if row["decode_seconds"]}
    first, here = rows[0], machine()
    if rounds:
        yield (
            f"Medians of {'-'.join(map(str, sorted(rounds)))} after warm-up, variants taking turns; {first['dtype']}, "
            f"batch 1, threads: {first['threads']}, {here['cpu']}, torch {here['torch']}."
        )
        yield f"{kernel_summary(chosen_kernels())}."
