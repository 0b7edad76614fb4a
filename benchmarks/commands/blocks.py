"""Each block alone at one width: parameters, KV cache, FLOPs and measured times."""

from collections.abc import Iterator
from typing import Annotated

import torch
import typer

from benchmarks.measure import blocks
from benchmarks.measure.blocks import EXPERTS, HEAD_DIM, QUERIES_PER_KEY, WINDOW, BlockConfig, block_list
from benchmarks.measure.devices import CPU
from benchmarks.measure.environment import kernel_summary, recorded, used_kernels
from benchmarks.measure.timing import Samples
from benchmarks.options import ComputingType, Repeat, ReportOptions, Seed, tokens_option
from benchmarks.output.report import Row, Rows, Table, columns
from benchmarks.output.show import format_tokens, measured_on, min_max, three_in, unless_zero

PHASES = (blocks.PREFILL, blocks.DECODE)


def command(
    *,
    dim: Annotated[int, typer.Option(min=1, help="Width of the residual stream, a multiple of 256.")] = 1024,
    tokens: Annotated[int, tokens_option(help="Of a prefill: 512 or 2k.")] = 512,
    context: Annotated[int, tokens_option(help="What a decoded token sees: 4096 or 32k.")] = 4096,
    dtype: ComputingType = torch.float32,
    repeat: Repeat = 9,
    seed: Seed = 0,
    to: ReportOptions,
) -> None:
    """Each block alone at one width, measured on the CPU.

    Attention (MHA, GQA, MQA, SWA, MLA; RoPE and NoPE), feed-forward (dense and experts), norms and where they stand:
    parameters, KV cache, FLOPs, and the time of a prefill and of one decoded token.
    """
    config, listed = BlockConfig(dim, tokens, context, dtype, repeat, seed), block_list(dim)
    blocks.require_block_memory(listed, config)
    samples = Samples()
    with to.report() as report:
        try:
            with recorded(report, CPU):
                blocks.run(listed, config, samples)
        finally:
            rows = blocks.rows(listed, config, samples)
            report.add(*(tables(rows) if rows else ()))


def tables(rows: Rows) -> Iterator[Table]:
    """The costs that follow from the specs; then the times."""
    yield _costs(f"Blocks at width {rows[0]['dim']:,}", rows)
    yield _times("The same, in milliseconds", rows)


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
        f"Attention: {first['dim'] // HEAD_DIM} heads of {HEAD_DIM}; in GQA {QUERIES_PER_KEY} share a key; SWA is GQA "
        f"with a window of {WINDOW}. MoE: {EXPERTS} experts, as many active parameters as dense. pre, olmo, sandwich, "
        "post: where norms stand around SwiGLU.",
        f"B/token, fixed KiB: what the cache keeps, in {first['dtype']}.",
        f"prefill G: 10^9 FLOPs of {format_tokens(first['tokens'])} tokens in one pass. decode M: 10^6 of one token "
        f"that sees {format_tokens(first['context'])}, itself included. 2 per multiply-add of matrix products; masked "
        "pairs are not counted.",
    ]

    def sparse(row: Row) -> Row:
        return {"active_params": None if row["active_params"] == row["params"] else row["active_params"]}

    return Table(title, shown, legend, rows, sparse)


def _times(title: str, rows: Rows) -> Table:
    first, milliseconds = rows[0], three_in(1e-3)
    shown = [
        *columns(block="block"),
        *columns(milliseconds, prefill_s="prefill"),
        *columns(prefill_range="min-max"),
        *columns(milliseconds, decode_s="decode"),
        *columns(decode_range="min-max"),
    ]
    rounds = sorted({len(row[f"{phase}_seconds"]) for row in rows for phase in PHASES})
    legend = [
        f"prefill: {format_tokens(first['tokens'])} tokens. decode: one token that sees "
        f"{format_tokens(first['context'])}.",
        f"Medians of {'-'.join(map(str, rounds))} after warm-up; blocks take turns, so that each finds its weights in "
        f"memory, as in a model, and not in the processor's caches. {measured_on(first)}",
        f"{kernel_summary(used_kernels())}.",
    ]

    def ranges(row: Row) -> Row:
        return {f"{phase}_range": min_max(row, f"{phase}_s", milliseconds) for phase in PHASES}

    return Table(title, shown, legend, rows, ranges)
