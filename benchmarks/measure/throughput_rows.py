"""Rows of measured speed: tokens a second with their spread, and the limits that this machine puts on them."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from statistics import fmean
from typing import Any

import torch

from benchmarks.analytic.models import about
from benchmarks.analytic.roofline import Device, Pass
from benchmarks.measure import ceilings
from benchmarks.measure.devices import last_cache
from benchmarks.measure.observed import Observed
from benchmarks.measure.runners import Workload
from benchmarks.measure.throughput import (
    COMPILED,
    EAGER,
    ZOO,
    Entrant,
    Found,
    Setting,
    environment_of,
    overhead,
    own_key,
)
from benchmarks.measure.timing import rate, settled
from zoo.blocks import MoE
from zoo.model.decoder import Decoder

Row = dict[str, Any]


def rows(entrants: Sequence[Entrant], setting: Setting, found: Found) -> list[Row]:
    """One row for each entrant and workload that has been timed at least once."""
    machine = ceilings.measured(ceiling_rows(setting, found))
    timed = ((entrant, work) for entrant in entrants for work in setting.works if entrant.key(work) in found.timed)
    made = [_row(entrant, work, setting, found, machine) for entrant, work in timed]
    for row in made:
        row["ratio"] = _ratio(row, made)
    return made


def ceiling_rows(setting: Setting, found: Found) -> list[Row]:
    """What the machine was found to be able to do."""
    return ceilings.rows(found.kernels, found.timed, setting.device, setting.threads)


def _row(entrant: Entrant, work: Workload, setting: Setting, found: Found, machine: Device | None) -> Row:
    subject, key = entrant.subject, entrant.key(work)
    seconds, tokens = found.timed[key], work.batch * work.tokens
    speed = rate(tokens, seconds)
    seen, watched = found.observed.get(key), _watched(subject.label, work, found)
    least = least_work(subject.spec, work, setting.dtype, watched.hits if watched else {})
    row = {
        "table": "throughput",
        **about(subject.model),
        "tiny": subject.tiny,
        "weights": subject.source.path.name if subject.source else "random",
        "layers": len(subject.spec.layers),
        "params": subject.spec.params(),
        "implementation": entrant.implementation,
        "mode": entrant.mode,
        "test": work.label,
        "phase": work.phase,
        "tokens": work.tokens,
        "depth": work.depth,
        "batch": work.batch,
        **environment_of(setting),
        "tokens_per_s": speed.median,
        "tokens_per_s_std": speed.std,
        "tokens_per_s_min": speed.low,
        "tokens_per_s_max": speed.high,
        "seconds": seconds,
        "warmups": len(found.warmups.get(key, ())) if key in found.samples else 0,
        "flops": least.flops,
        "weight_bytes_read": round(least.weight_bytes),
        "kv_bytes_read": least.kv_bytes,
        "experts_hit": fmean(watched.hits.values()) if watched and watched.hits else None,
        "experts_hit_predicted": predicted_hits(subject.spec, work),
        "ceiling_tokens_per_s": machine and least.tokens_per_s(machine),
        "mbu": machine and (least.weight_bytes + least.kv_bytes) * speed.median / tokens / machine.bandwidth,
        "mfu": machine and least.flops * speed.median / tokens / machine.flops,
        "own_matrices_tokens_per_s": _own_rate(entrant, work, found),
        "peak_bytes": seen.peak_bytes if seen else None,
        "overhead": overhead(work, seconds, found),
        "ratio": None,
    }
    return row | {"marks": _marks(row, found, key, setting)}


def _watched(label: str, work: Workload, found: Found) -> Observed | None:
    """What was seen of a model in the zoo's eager mode: the experts that it hits, whoever runs it."""
    return found.observed.get((label, ZOO, EAGER, work.label))


def _own_rate(entrant: Entrant, work: Workload, found: Found) -> float | None:
    """Of the zoo's passes in either mode: the products are seen in the eager one."""
    key = (entrant.subject.label, ZOO, EAGER, work.label)
    seconds = found.timed.get(own_key(key)) if entrant.implementation == ZOO else None
    return rate(work.batch * work.tokens, seconds).median if seconds else None


def least_work(spec: Decoder, work: Workload, dtype: torch.dtype, hits: dict[int, float]) -> Pass:
    """The FLOPs of all passes of a workload, and the bytes that they must at least move: the weights once a pass, but
    for unused rows of the embedding and experts that no token hits, as counted (`hits`) or else as expected; and the
    cache, up to and with the new tokens."""
    batch, passes = work.batch, work.passes
    new = passes[0][1]
    read = spec.read_params(batch * new) + sum(
        (hit - expected(spec.layers[index].ffn.block, batch * new)) * _expert(spec, index)
        for index, hit in hits.items()
    )
    return Pass(
        tokens=batch * work.tokens,
        flops=batch * sum(spec.flops(past, new, logits=1) for past, new in passes),
        weight_bytes=len(passes) * read * dtype.itemsize,
        kv_bytes=sum(spec.kv_bytes(past + new, batch, dtype) for past, new in passes),
    )


def expected(block: Any, tokens: int) -> float:
    """Experts that are hit by at least one of so many tokens, where every expert is as likely: E (1 - (1 - k/E)^n)."""
    return block.experts * (1 - (1 - block.router.k / block.experts) ** tokens)


def predicted_hits(spec: Decoder, work: Workload) -> float | None:
    """`expected` of each pass, on average over the layers with experts; None where there are none."""
    tokens = work.batch * work.passes[0][1]
    return fmean(found) if (found := [expected(block, tokens) for block in _sparse(spec)]) else None


def _sparse(spec: Decoder) -> list[MoE]:
    return [layer.ffn.block for layer in spec.layers if isinstance(layer.ffn.block, MoE)]


def _expert(spec: Decoder, layer: int) -> int:
    block = spec.layers[layer].ffn.block
    assert isinstance(block, MoE)
    return block.expert.params(spec.dim)


def _ratio(row: Row, rows: Sequence[Row]) -> float | None:
    """A speed over the peer's as that runs by default; None of that itself, and where there is no peer."""
    peers = [
        each
        for each in rows
        if each["implementation"] != ZOO and all(each[name] == row[name] for name in ("model", "swap", "test"))
    ]
    default = next((each for each in peers if each["mode"] != COMPILED), None)
    return None if default is None or default is row else row["tokens_per_s"] / default["tokens_per_s"]


def _marks(row: Row, found: Found, key: tuple[str, ...], setting: Setting) -> list[str]:
    """What a reader must know before they believe a figure."""
    cache = last_cache(setting.device)
    holds = {
        "above_bandwidth": (row["mbu"] or 0) > 1,
        "above_matmul_rate": (row["mfu"] or 0) > 1,
        # Compiled, the head's product with the last token is a sum, and faster than a library's: no ceiling.
        "above_own_matrices": row["mode"] == EAGER and row["tokens_per_s"] > (row["own_matrices_tokens_per_s"] or inf),
        "weights_in_cache": cache is not None and row["params"] * setting.dtype.itemsize < cache,
        "not_settled": key in found.samples and not settled(found.warmups.get(key, ())),
        "warming_up": key not in found.samples,
    }
    return [mark for mark, is_so in holds.items() if is_so]
