"""Throughput rows: tokens per second with their spread, and the ceilings that this machine puts on them."""

from collections.abc import Sequence
from dataclasses import asdict
from math import inf
from statistics import fmean, median
from typing import Any

import torch

from benchmarks.analytic.models import about
from benchmarks.analytic.roofline import Device, Pass
from benchmarks.measure import ceilings
from benchmarks.measure.candidates import Candidate, Key, Results
from benchmarks.measure.devices import last_cache
from benchmarks.measure.observed import Observed, gemm_key
from benchmarks.measure.runners import COMPILED, EAGER, ZOO, Workload
from benchmarks.measure.timing import rate, settled
from benchmarks.output.report import Row
from zoo.blocks import MoE
from zoo.model.decoder import Decoder
from zoo.units import dtype_name


def rows(results: Results) -> list[Row]:
    """One row for each candidate and workload that was timed at least once."""
    machine = ceilings.measured_device(ceiling_rows(results))
    pairs = [(candidate, work) for candidate in results.candidates for work in results.config.workloads]
    found = [_row(each, work, results, machine) for each, work in pairs if each.key(work) in results.timed]
    for row in found:
        row["ratio"] = _ratio(row, found)
    return found


def ceiling_rows(results: Results) -> list[Row]:
    """The measured ceilings of the machine, a row for each kernel."""
    return ceilings.rows(results.kernels, results.timed, results.config.device, results.config.threads)


def harness_key(work: Workload) -> Key:
    """The name among the samples of a workload that is run with a model that computes nothing."""
    return ("harness", work.label)


def _row(candidate: Candidate, work: Workload, results: Results, machine: Device | None) -> Row:
    config, model, key = results.config, candidate.model, candidate.key(work)
    seconds, tokens = results.timed[key], work.batch * work.tokens
    speed = rate(tokens, seconds)
    # Experts and GEMMs are seen in the zoo's eager mode, and are the same whoever runs the model.
    eager_key = (model.label, ZOO, EAGER, work.label)
    seen, hits = results.observed.get(key), results.observed.get(eager_key, Observed()).hits
    gemms = results.timed.get(gemm_key(eager_key)) if candidate.implementation == ZOO else None
    harness = results.timed.get(harness_key(work))
    least = least_work(model.spec, work, config.dtype, hits)
    row = {
        "table": "throughput",
        **about(model.entry),
        "tiny": model.tiny,
        "weights": model.source.path.name if model.source else "random",
        "layers": len(model.spec.layers),
        "params": model.spec.params(),
        "implementation": candidate.implementation,
        "mode": candidate.mode,
        "test": work.label,
        **asdict(work),
        "dtype": dtype_name(config.dtype),
        "device": str(config.device),
        "threads": config.threads,
        "tokens_per_s": speed.median,
        "tokens_per_s_std": speed.std,
        "tokens_per_s_min": speed.min,
        "tokens_per_s_max": speed.max,
        "seconds": seconds,
        "warmups": len(results.warmups.get(key, ())) if key in results.samples else 0,
        "flops": least.flops,
        "weight_bytes_read": round(least.weight_bytes),
        "kv_bytes_read": least.kv_bytes,
        "experts_hit": fmean(hits.values()) if hits else None,
        "experts_hit_predicted": predicted_hits(model.spec, work),
        "ceiling_tokens_per_s": machine and least.tokens_per_s(machine),
        "mbu": machine and (least.weight_bytes + least.kv_bytes) * speed.median / tokens / machine.bandwidth,
        "mfu": machine and least.flops * speed.median / tokens / machine.flops,
        "gemms_tokens_per_s": rate(tokens, gemms).median if gemms else None,
        "peak_bytes": seen.peak_bytes if seen else None,
        "overhead": median(harness) / median(seconds) if harness else None,
        "ratio": None,
    }
    return row | {"marks": _marks(row, results, key)}


def least_work(spec: Decoder, work: Workload, dtype: torch.dtype, hits: dict[int, float]) -> Pass:
    """The FLOPs of all passes of a workload, and the bytes that they must at least read: the cache with the new tokens,
    and the weights once per pass, less unused rows of the embedding and experts that no token hits, as counted (`hits`
    by layer) or else as expected."""
    batch, passes = work.batch, work.passes
    new = passes[0][1]
    read: float = spec.read_params(batch * new)
    for index, hit in hits.items():
        block: Any = spec.layers[index].ffn.block
        read += (hit - expected_hits(block, batch * new)) * block.expert.params(spec.dim)
    return Pass(
        tokens=batch * work.tokens,
        flops=batch * sum(spec.flops(past, new, logits=1) for past, new in passes),
        weight_bytes=len(passes) * read * dtype.itemsize,
        kv_bytes=sum(spec.kv_bytes(past + new, batch, dtype) for past, new in passes),
    )


def expected_hits(block: Any, tokens: int) -> float:
    """Experts hit by at least one of `tokens` tokens if every expert is equally likely: E (1 - (1 - k/E)^tokens)."""
    return block.experts * (1 - (1 - block.router.k / block.experts) ** tokens)


def predicted_hits(spec: Decoder, work: Workload) -> float | None:
    """The mean of `expected_hits` of a pass over the layers with experts; None where there are none."""
    tokens = work.batch * work.passes[0][1]
    sparse = (layer.ffn.block for layer in spec.layers if isinstance(layer.ffn.block, MoE))
    return fmean(hits) if (hits := [expected_hits(block, tokens) for block in sparse]) else None


def _ratio(row: Row, rows: Sequence[Row]) -> float | None:
    """The speed over the baseline's as it runs by default; None for that itself, and where there is no baseline."""
    baselines = (
        each
        for each in rows
        if each["implementation"] != ZOO
        and each["mode"] != COMPILED
        and all(each[name] == row[name] for name in ("model", "swap", "test"))
    )
    default = next(baselines, None)
    return None if default is None or default is row else row["tokens_per_s"] / default["tokens_per_s"]


def _marks(row: Row, results: Results, key: Key) -> list[str]:
    """What a reader must know before believing a figure."""
    config, cache = results.config, last_cache(results.config.device)
    holds = {
        "above_bandwidth": (row["mbu"] or 0) > 1,
        "above_matmul_rate": (row["mfu"] or 0) > 1,
        # A compiled model computes the last token's logits as a reduction, faster than the library's GEMM.
        "above_gemms": row["mode"] == EAGER and row["tokens_per_s"] > (row["gemms_tokens_per_s"] or inf),
        "weights_in_cache": cache is not None and row["params"] * config.dtype.itemsize < cache,
        "not_settled": key in results.samples and not settled(results.warmups.get(key, ())),
        "warming_up": key not in results.samples,
    }
    return [mark for mark, is_so in holds.items() if is_so]
