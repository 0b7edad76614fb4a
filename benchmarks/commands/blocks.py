"""Blocks outside a model: each kind at one width, or the variants of one layer's attention."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import torch
import typer

from benchmarks import options
from benchmarks.analytic.models import NamedSpec, about, one, swapped
from benchmarks.measure import blocks
from benchmarks.measure import variants as attention_variants
from benchmarks.measure.blocks import DECODE, EXPERTS, HEAD_DIM, PREFILL, QUERIES_PER_KEY, WINDOW
from benchmarks.measure.environment import CPU, kernel_summary, recorded, used_kernels
from benchmarks.measure.mla import ABSORBED, EXPANDED, LATENT, MLAVariants
from benchmarks.measure.sparse import SPARSE, SparseVariants
from benchmarks.measure.timing import Samples
from benchmarks.measure.variants import Comparison, VariantsConfig
from benchmarks.output.report import Report, Row, Rows, Table, columns, named
from benchmarks.output.show import format_tokens, measured_on, min_max, three, three_in, unit, unless_zero
from zoo.errors import CheckFailed, UsageError
from zoo.swaps.tiny import tiny as tiny_form
from zoo.units import format_count

Variants = StrEnum("Variants", ["mla", "sparse"])
COMPARISONS: dict[str, type[Comparison]] = {Variants.mla: MLAVariants, Variants.sparse: SparseVariants}
EXPANDS = {EXPANDED: "each token once", LATENT: "all tokens at each step", ABSORBED: "never"}
MILLISECONDS = three_in(1e-3)
REPEAT, VARIANTS_REPEAT = 9, 5


def command(
    *,
    name: Annotated[
        str | None,
        typer.Argument(help="With --variants: a preset, hub id, family or folder. [deepseek-v3 or deepseek-v3.2]"),
    ] = None,
    variants: Annotated[
        Variants | None,
        typer.Option(
            help="mla: three ways to decode with latent attention. sparse: attention to chosen and to all tokens."
        ),
    ] = None,
    dim: Annotated[
        int | None, typer.Option(min=1, help="Width of the residual stream, a multiple of 256. [1024]")
    ] = None,
    tokens: Annotated[int | None, options.tokens_option(help="Tokens of the prefill: 512 or 2k. [512]")] = None,
    context: Annotated[
        list[int] | None,
        options.tokens_option(
            "--context",
            help="Tokens that a decoded token sees; repeatable with --variants. [4k; mla: 1k,4k,32k; sparse: 8k,32k]",
        ),
    ] = None,
    prefill: Annotated[
        bool, options.flag("With --variants sparse: also measure a prefill, which takes minutes.", "--prefill")
    ] = False,
    tiny: Annotated[bool, options.flag("With --variants: use toy widths.", "--tiny")] = False,
    dtype: options.ComputingType = torch.float32,
    repeat: Annotated[
        int | None,
        typer.Option(
            "--repeat", "-r", min=1, help="Number of timed runs of each block or variant. [9; with --variants: 5]"
        ),
    ] = None,
    seed: options.Seed = 0,
    swap: Annotated[
        options.Strings,
        typer.Option(
            metavar="CHANGE",
            help="With --variants: change the model before measuring it: 'MLA(heads=16)' (repeatable).",
        ),
    ] = None,
    report: Report,
) -> None:
    """Single blocks at one width, measured on the CPU.

    The tables show parameters, KV cache, FLOPs, and the times of a prefill and of one decoded token, for attention,
    feed-forward blocks and norms.

    --variants measures the attention of one layer of a model instead, at each context. Variants have the same weights,
    and their outputs must be equal. mla has three: the cache keeps the keys and values of all heads (expanded); it
    keeps latents, which are expanded at each step (latent); or attention runs over the latents (absorbed, the zoo's
    MLA). A variant that does not fit into the free memory is skipped. sparse has two: attention over all cached tokens,
    and attention over those that the indexer chooses. Both are compiled, and projections are not timed.
    """
    given = {"NAME": name, "--tiny": tiny, "--swap": swap} if variants is None else {"--dim": dim, "--tokens": tokens}
    if unused := [option for option, value in given.items() if value]:
        raise UsageError(f"{unused[0]} is for {'--variants' if variants is None else 'blocks without --variants'}")
    if prefill and variants is not Variants.sparse:
        raise UsageError("--prefill is for --variants sparse")
    if variants is None:
        if context and len(context) > 1:
            raise UsageError("--context can be repeated only with --variants")
        config = blocks.BlockConfig(
            dim or 1024, tokens or 512, context[0] if context else 4096, dtype, repeat or REPEAT, seed
        )
        listed, samples = blocks.block_list(config.dim), Samples()
        blocks.require_block_memory(listed, config)
        with recorded(report, CPU, lambda: tables(blocks.rows(listed, config, samples))):
            blocks.run(listed, config, samples)
        return
    kind = COMPARISONS[variants]
    model = swapped(one(name or kind.MODEL), swap) if swap else one(name or kind.MODEL)
    phases = (DECODE, PREFILL) if prefill else (DECODE,)
    contexts = sorted(set(context or kind.CONTEXTS))
    comparison = of_model(kind, model, tiny, VariantsConfig(contexts, phases, dtype, repeat or VARIANTS_REPEAT, seed))
    comparison.require_weight_memory()
    measured = list[Row]()
    with recorded(report, CPU, lambda: tables([{**about(model), "tiny": tiny, **row} for row in measured])):
        attention_variants.run(comparison, measured)
    if failed := comparison.failures(measured):
        raise CheckFailed("; ".join(failed))


def of_model(kind: type[Comparison], model: NamedSpec, tiny: bool, config: VariantsConfig) -> Comparison:
    """Returns the comparison for a model's first layer with such attention. Raises UsageError if no layer has it."""
    spec = tiny_form(model.spec) if tiny else model.spec
    if found := next((layer.mixer for layer in spec.layers if kind.measures(layer.mixer)), None):
        return kind(found, spec.dim, config)
    raise UsageError(f"{model.label} has no {kind.FEATURE}; a model with it: {kind.MODEL}")


def tables(rows: Rows) -> Iterator[Table]:
    """Yields the tables of one measurement."""
    if not rows:
        return
    first = rows[0]
    if first["table"] == "blocks":
        yield _costs(f"Blocks at width {first['dim']:,}", rows)
        yield _times("Times of the same blocks, in milliseconds", rows)
        return
    of = f"of {named(first)}{' at toy widths' if first['tiny'] else ''}"
    if first["table"] == "mla":
        yield _kept(f"One layer's attention {of}", rows)
        yield _decoding("Decoding one token, in milliseconds", rows)
        return
    titles = {
        DECODE: f"Decoding one token: one layer's attention {of}",
        PREFILL: f"Prefill: one layer's attention {of}",
    }
    for phase, title in titles.items():
        if shown := [row for row in rows if row["phase"] == phase]:
            yield _gain(title, shown)


def _costs(title: str, rows: Rows) -> Table:
    first = rows[0]
    shown = [
        *columns(block="block"),
        *columns(three_in(1e6), params="params M", active_params="active M"),
        *columns(unless_zero("{:,}".format), kv_bytes_per_token="B/token"),
        *columns(unless_zero(three_in(2**10)), kv_fixed_bytes="fixed KiB"),
        *columns(unless_zero(three_in(1e9)), prefill_flops="prefill G"),
        *columns(unless_zero(three_in(1e6)), decode_flops="decode M"),
    ]
    legend = [
        f"Attention: {first['dim'] // HEAD_DIM} heads of width {HEAD_DIM}; in GQA, {QUERIES_PER_KEY} query heads share "
        f"a key; SWA is GQA with a window of {WINDOW} tokens. MoE: {EXPERTS} experts, with as many active parameters "
        "as the dense blocks. pre, olmo, sandwich, post: placements of the norms around SwiGLU.",
        f"B/token, fixed KiB: the size of the cache, per token and fixed, in {first['dtype']}.",
        f"prefill G: 10^9 FLOPs of {format_tokens(first['tokens'])} tokens in one pass. decode M: 10^6 FLOPs of one "
        f"token that sees {format_tokens(first['context'])}, itself included. Each multiply-add of a matrix product "
        "counts as 2; masked pairs are not counted.",
    ]
    # In a block without experts, all parameters are active.
    dense = {"active_params": None}
    return Table(title, shown, legend, rows, lambda row: dense if row["active_params"] == row["params"] else {})


def _times(title: str, rows: Rows) -> Table:
    first = rows[0]
    shown = [
        *columns(block="block"),
        *columns(MILLISECONDS, prefill_s="prefill"),
        *columns(prefill_range="min-max"),
        *columns(MILLISECONDS, decode_s="decode"),
        *columns(decode_range="min-max"),
    ]
    legend = [
        f"prefill: {format_tokens(first['tokens'])} tokens. decode: one token that sees "
        f"{format_tokens(first['context'])}.",
        *_method(
            first,
            "; blocks take turns, so that each finds its weights in memory, as in a model, and not in the processor's "
            "caches.",
            [row[f"{phase}_seconds"] for row in rows for phase in (PREFILL, DECODE)],
        ),
    ]

    def ranges(row: Row) -> Row:
        return {f"{phase}_range": min_max(row, f"{phase}_s", MILLISECONDS) for phase in (PREFILL, DECODE)}

    return Table(title, shown, legend, rows, ranges)


def _method(first: Row, turns: str, samples: list[list[float]]) -> Iterator[str]:
    """Yields the legend's lines on the method: number of samples, order of the runs (`turns`), machine and kernels."""
    if rounds := sorted({len(seconds) for seconds in samples if seconds}):
        yield f"Medians of {'-'.join(map(str, rounds))} after warm-up{turns} {measured_on(first)}"
        yield f"{kernel_summary(used_kernels())}."


def _kept(title: str, rows: Rows) -> Table:
    shown = [
        *columns(variant="variant", keeps="cached per token", expands="expanded"),
        *columns(unit(1, 0), elements_per_token="elements"),
        *columns(three_in(2**10), kv_bytes_per_token="KiB/token"),
    ]
    heads = f"{rows[0]['heads']} keys and values"

    def kept(row: Row) -> Row:
        variant = row["variant"]
        return {"keeps": heads if variant == EXPANDED else "1 latent and 1 rotary key", "expands": EXPANDS[variant]}

    legend = [f"{format_count(rows[0]['params'])} parameters at width {rows[0]['dim']:,}, the same for all variants."]
    return Table(title, shown, legend, [row for row in rows if row["context"] == rows[0]["context"]], kept)


def _decoding(title: str, rows: Rows) -> Table:
    first = rows[0]
    shown = [
        *columns(format_tokens, context="context"),
        *columns(variant="variant"),
        *columns(three_in(2**20), kv_bytes="MiB"),
        *columns(three_in(1e9), flops="GFLOPs"),
        *columns(MILLISECONDS, decode_s="ms"),
        *columns(range="min-max"),
        *columns(three, against_absorbed="vs absorbed"),
    ]
    skipped = [
        f"{row['variant']} at {format_tokens(row['context'])} {row['too_large']}" for row in rows if row["too_large"]
    ]
    apart = [row["difference"] for row in rows if row["variant"] != ABSORBED and row["difference"] is not None]
    legend = [
        "context: tokens that the decoded token sees, itself included. MiB: the size of their cache, by formula and as "
        "allocated. GFLOPs: 10^9 FLOPs, 2 per multiply-add of matrix products. vs absorbed: time / absorbed's time.",
        *([f"Too large for this machine: {'; '.join(skipped)}."] if skipped else []),
        *(
            [
                f"Outputs are {_equal(rows)}: at most {max(apart):.1e} from absorbed's, as a share of its largest "
                f"element; the bound is {first['bound']:.0e}."
            ]
            if apart
            else []
        ),
        *_method(first, ", variants taking turns;", [row["decode_seconds"] for row in rows]),
    ]

    def ranges(row: Row) -> Row:
        return {"range": "too large" if row["too_large"] else min_max(row, "decode_s", MILLISECONDS)}

    return Table(title, shown, legend, rows, ranges)


def _gain(title: str, rows: Rows) -> Table:
    shown = [
        *columns(format_tokens, context="context"),
        *columns(variant="variant"),
        *columns(three_in(1e9), flops="GFLOPs"),
        *columns(MILLISECONDS, attention_s="ms"),
        *columns(range="min-max"),
        *columns(three, gain="vs full", predicted_gain="predicted"),
        *columns("{:.0%}".format, reached="reached"),
    ]
    first = rows[0]
    crossover = first["crossover_tokens"]
    cheaper = f"from {crossover:,} stored tokens on" if crossover else "at no length"
    apart = max(row["difference"] for row in rows if row["variant"] == SPARSE)
    legend = [
        "Times without projections. full: attention over all latents. sparse: scores of the indexer, gathering, and "
        "attention over the chosen latents. vs full: speed relative to full. predicted: FLOPs of full / FLOPs of "
        "sparse. reached: vs full / predicted.",
        f"{first['heads']} heads, {first['index_heads']} index heads, top {first['k']:,}: sparse decodes with fewer "
        f"FLOPs {cheaper}.",
        f"Outputs are {_equal(rows)} to attention under the mask of the chosen tokens: at most {apart:.1e} apart, as a "
        f"share of the largest element; the bound is {first['bound']:.0e}.",
        *_method(first, ", taking turns, compiled;", [row["attention_seconds"] for row in rows]),
    ]
    return Table(title, shown, legend, rows, lambda row: {"range": min_max(row, "attention_s", MILLISECONDS)})


def _equal(rows: Rows) -> str:
    return "NOT equal" if COMPARISONS[rows[0]["table"]].failures(rows) else "equal"
