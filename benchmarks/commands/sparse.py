"""What sparse attention gains over full attention: FLOPs, measured times, and from how many tokens on."""

from collections.abc import Iterator
from typing import Annotated

import torch
import typer

from benchmarks.analytic.models import NamedSpec, about, one, swapped
from benchmarks.measure import sparse
from benchmarks.measure.blocks import DECODE, PREFILL
from benchmarks.measure.devices import CPU
from benchmarks.measure.environment import kernel_summary, recorded, used_kernels
from benchmarks.measure.mla import require_weight_memory
from benchmarks.measure.sparse import SPARSE, SparseConfig
from benchmarks.measure.timing import Samples
from benchmarks.options import ComputingType, Contexts, Repeat, ReportOptions, Seed, Strings, flag
from benchmarks.output.report import Row, Rows, Table, columns, named
from benchmarks.output.show import format_tokens, measured_on, min_max, three, three_in
from zoo.blocks.sparse_mla import SparseMLA
from zoo.errors import CheckFailed, UsageError
from zoo.swaps.tiny import tiny as tiny_form

CONTEXTS = (8192, 32_768)


def command(
    *,
    name: Annotated[
        str, typer.Argument(help="A preset, hub id, family or folder with sparse attention.")
    ] = "deepseek-v3.2",
    context: Contexts = None,
    prefill: Annotated[bool, flag("Measure passes of all tokens at once, too: minutes.", "--prefill")] = False,
    tiny: Annotated[bool, flag("At toy widths.", "--tiny")] = False,
    dtype: ComputingType = torch.float32,
    repeat: Repeat = 5,
    seed: Seed = 0,
    swap: Annotated[
        Strings, typer.Option(metavar="CHANGE", help="Change a block first: 'Indexer(k=512)'. Repeat.")
    ] = None,
    to: ReportOptions,
) -> None:
    """What sparse attention gains over full attention, measured.

    One layer's attention without its projections, compiled, on the CPU, at each context (8k and 32k): over all stored
    tokens, and over those that the indexer chooses, its scores and the gathering included. The sparse output must be
    that of attention under the mask of the chosen tokens.
    """
    model = swapped(one(name), swap) if swap else one(name)
    spec, dim = sparse_attention(model, tiny)
    phases = (DECODE, PREFILL) if prefill else (DECODE,)
    config = SparseConfig(sorted(set(context or CONTEXTS)), phases, dtype, repeat, seed)
    if short := [tokens for tokens in config.contexts if tokens <= spec.indexer.k]:
        raise UsageError(f"--context {short[0]}: of at most k={spec.indexer.k} tokens all are chosen; take more")
    require_weight_memory(spec, dim, dtype)
    differences, samples = dict[str, float](), Samples()
    with to.report() as report:
        try:
            with recorded(report, CPU):
                sparse.run(spec, dim, config, differences, samples)
        finally:
            measured = sparse.rows(spec, dim, config, differences, samples)
            rows = [{**about(model), "tiny": tiny, **row} for row in measured]
            report.add(*(tables(rows) if rows else ()))
    if failed := sparse.failures(rows):
        raise CheckFailed("; ".join(failed))


def sparse_attention(model: NamedSpec, tiny: bool) -> tuple[SparseMLA, int]:
    """The sparse attention of a model's first layer with an indexer of its own, and the model's width. Raises
    UsageError for none."""
    spec = tiny_form(model.spec) if tiny else model.spec
    for layer in spec.layers:
        if isinstance(layer.mixer, SparseMLA) and not layer.mixer.shares_choice:
            return layer.mixer, spec.dim
    raise UsageError(f"{model.label} has no sparse attention; one that has: deepseek-v3.2")


def tables(rows: Rows) -> Iterator[Table]:
    """What one token takes after others, then what all take at once."""
    first = rows[0]
    of = f"of {named(first)}{' at toy widths' if first['tiny'] else ''}"
    titles = {DECODE: f"Decoding one token: one layer's attention {of}", PREFILL: f"Prefill: the same {of}"}
    for phase, title in titles.items():
        if shown := [row for row in rows if row["phase"] == phase]:
            yield _measured(title, shown)


def _measured(title: str, rows: Rows) -> Table:
    milliseconds = three_in(1e-3)
    shown = [
        *columns(format_tokens, context="context"),
        *columns(variant="variant"),
        *columns(three_in(1e9), flops="GFLOPs"),
        *columns(milliseconds, attention_s="ms"),
        *columns(range="min-max"),
        *columns(three, gain="x full", predicted_gain="predicted"),
        *columns("{:.0%}".format, reached="reached"),
    ]
    first = rows[0]
    crossover = first["crossover_tokens"]
    indexer = f"{first['index_heads']} index heads, top {first['k']:,}"
    cheaper = f"from {crossover:,} stored tokens on" if crossover else "at no length"
    rounds = sorted({len(row["attention_seconds"]) for row in rows})
    legend = [
        "Without projections. full: attention over all latents. sparse: the indexer, gathering, and attention over "
        "what it chose. predicted: FLOPs of full over those of sparse; reached: the share of it.",
        f"{first['heads']} heads, {indexer}: sparse decodes with fewer FLOPs {cheaper}.",
        f"Outputs {'NOT equal' if sparse.failures(rows) else 'equal'} to attention under the mask of the chosen "
        f"tokens: at most {max(row['difference'] for row in rows if row['variant'] == SPARSE):.1e} apart, relative to "
        f"the largest; the bound is {first['bound']:.0e}.",
        f"Medians of {'-'.join(map(str, rounds))} after warm-up, taking turns, compiled; {measured_on(first)}",
        f"{kernel_summary(used_kernels())}.",
    ]

    def ranges(row: Row) -> Row:
        return {"range": min_max(row, "attention_s", milliseconds)}

    return Table(title, shown, legend, rows, ranges)
