"""Each block alone at one width: what it holds, keeps, computes and takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
import typer

from benchmarks.measure import blocks
from benchmarks.measure.blocks import EXPERTS, HEAD_DIM, QUERIES_PER_KEY, WINDOW, BlockConfig, block_list
from benchmarks.measure.devices import CPU
from benchmarks.measure.environment import chosen_kernels, kernel_summary, recorded
from benchmarks.measure.timing import Samples
from benchmarks.options import AsFormat, ComputingType, Repeat, Seed, tokens
from benchmarks.output.report import Report, Table
from benchmarks.output.show import positions, three, three_in
from zoo.cli.runner import Debug, Json, Out
from zoo.cli.tables import Column, Format
from zoo.core.devices import machine

Row = dict[str, Any]
Rows = Sequence[Row]
Dim = Annotated[int, typer.Option("--dim", min=1, help="Width of the residual stream, a multiple of 256.")]
Tokens = Annotated[int, typer.Option("--tokens", parser=tokens, metavar="TOKENS", help="Of a prefill: 512 or 2k.")]
Context = Annotated[
    int, typer.Option("--context", parser=tokens, metavar="TOKENS", help="What a decoded token sees: 4096 or 32k.")
]


def command(
    dim: Dim = 1024,
    tokens: Tokens = 512,
    context: Context = 4096,
    dtype: ComputingType = torch.float32,
    repeat: Repeat = 9,
    seed: Seed = 0,
    format: AsFormat = Format.table,
    json: Json = False,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Each block alone at one width, measured on the CPU.

    Attention (MHA, GQA, MQA, SWA, MLA; RoPE and NoPE), feed-forward (dense and experts), norms and where they stand:
    parameters, KV cache, FLOPs, and the time of a prefill and of one decoded token.
    """
    config, listed = BlockConfig(dim, tokens, context, dtype, repeat, seed), block_list(dim)
    blocks.require_block_memory(listed, config)
    report, samples = Report.asked(format, json, out), Samples()
    try:
        with recorded(report, CPU):
            blocks.run(listed, config, samples)
    finally:
        rows = blocks.rows(listed, config, samples)
        report.add(*(tables(rows) if rows else ()))
        report.finish()


def tables(rows: Rows) -> Iterator[Table]:
    """What follows from the specs; then the times."""
    yield _costs(f"Blocks at width {rows[0]['dim']:,}", rows)
    yield _times("The same, in milliseconds", rows)


def _costs(title: str, rows: Rows) -> Table:
    first = rows[0]
    columns = [
        Column("block", "block"),
        Column("params", "params M", three_in(1e6)),
        Column("shown_active", "active M", three_in(1e6)),
        Column("shown_per_token", "B/token", "{:,}".format),
        Column("shown_fixed", "fixed KiB", three_in(2**10)),
        Column("shown_prefill", "prefill G", three_in(1e9)),
        Column("shown_decode", "decode M", three_in(1e6)),
    ]
    legend = [
        f"Attention: {first['dim'] // HEAD_DIM} heads of {HEAD_DIM}; in GQA {QUERIES_PER_KEY} share a key; SWA is GQA "
        f"with a window of {WINDOW}. MoE: {EXPERTS} experts, as many active parameters as dense. pre, olmo, sandwich, "
        "post: where norms stand around SwiGLU.",
        f"B/token, fixed KiB: what the cache keeps, in {first['dtype']}.",
        f"prefill G: 10^9 FLOPs of {positions(first['tokens'])} tokens in one pass. decode M: 10^6 of one token that "
        f"sees {positions(first['context'])}, itself included. 2 per multiply-add of matrix products; masked pairs are "
        "not counted.",
    ]

    def shown(row: Row) -> Row:
        return {
            "shown_active": row["active_params"] if row["active_params"] != row["params"] else None,
            "shown_per_token": row["kv_bytes_per_token"] or None,
            "shown_fixed": row["kv_fixed_bytes"] or None,
            "shown_prefill": row["prefill_flops"] or None,
            "shown_decode": row["decode_flops"] or None,
        }

    return Table(title, columns, legend, rows, shown)


def _times(title: str, rows: Rows) -> Table:
    first, here = rows[0], machine()
    columns = [
        Column("block", "block"),
        Column("prefill_s", "prefill", three_in(1e-3)),
        Column("prefill_range", "min-max"),
        Column("decode_s", "decode", three_in(1e-3)),
        Column("decode_range", "min-max"),
    ]
    rounds = sorted({len(row[f"{phase}_seconds"]) for row in rows for phase in ("prefill", "decode")})
    legend = [
        f"prefill: {positions(first['tokens'])} tokens. decode: one token that sees {positions(first['context'])}.",
        f"Medians of {'-'.join(map(str, rounds))} after warm-up; blocks take turns, so that each finds its weights in "
        f"memory, as in a model, and not in the processor's caches. {first['dtype']}, batch 1, "
        f"threads: {first['threads']}, {here['cpu']}, torch {here['torch']}.",
        f"{kernel_summary(chosen_kernels())}.",
    ]

    def ranges(row: Row) -> Row:
        return {
            f"{phase}_range": f"{three(row[f'{phase}_s_min'] * 1e3)}-{three(row[f'{phase}_s_max'] * 1e3)}"
            for phase in ("prefill", "decode")
        }

    return Table(title, columns, legend, rows, ranges)
