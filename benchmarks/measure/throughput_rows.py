"""Rows and tables of throughput: measured tokens per second, and the upper limits (ceilings) of this machine."""

from collections.abc import Iterator
from dataclasses import asdict
from math import inf
from statistics import fmean, median

import torch

from benchmarks.analytic.models import about
from benchmarks.analytic.roofline import Device, Pass
from benchmarks.measure import ceilings
from benchmarks.measure.environment import kernel_summary, last_cache
from benchmarks.measure.observed import Observed, gemm_key
from benchmarks.measure.parallel import ONE_PROCESS, exchange_key, parts_of_a_step
from benchmarks.measure.runners import COMPILED, EAGER, ZOO, Candidate, Key, Results, Workload
from benchmarks.measure.timing import MAX_WARMUP_ROUNDS, MAX_WARMUP_SECONDS, rate, settled
from benchmarks.measure.training import training_flops
from benchmarks.output.report import Row, Rows, Table, columns, named
from benchmarks.output.show import min_max, three, three_in, unit
from zoo.blocks import MoE
from zoo.cli.tables import Column
from zoo.model.decoder import Decoder
from zoo.units import dtype_name, format_bytes, format_count

# SIGNS: mark of a row -> its sign in the table. MEANINGS: sign -> its explanation in the legend.
ABOVE = dict.fromkeys(("above_bandwidth", "above_matmul_rate", "above_gemms"), "!")
SIGNS = ABOVE | {"weights_in_cache": "c", "not_settled": "~", "warming_up": "w"}
MEANINGS = {
    "!": "above a ceiling: the machine's speed changed during the measurement, or a cache held the data.",
    "c": "the weights fit into the last-level cache, so the memory bandwidth is not a ceiling.",
    "w": "interrupted during the warm-up: the samples are those of the warm-up.",
    "~": f"times had not settled when the warm-up ended, after {MAX_WARMUP_ROUNDS} rounds or {MAX_WARMUP_SECONDS} s.",
}
CACHE_UNKNOWN = "The size of the last-level cache is not known."
TRAINING_LEGEND = (
    "train BxT: one training step on B sequences of T tokens: forward, backward and AdamW (fused), with the logits of "
    "all tokens. Each row's model has its own weights; all start from the same values. Tokens per second over all "
    "sequences."
)
PASS_LIMITS = (
    "ceiling: tokens per second if a pass took only the time to read weights and cache, or to compute its FLOPs, "
    "whichever is longer.",
    "MBU, MFU: % of the read bandwidth and of the arithmetic rate below. GEMMs: % of the speed of the pass's matrix "
    "products with weights alone, one after the other.",
)
TRAINING_LIMITS = (
    "ceiling: tokens per second if only the arithmetic took time. A step has three times the FLOPs of a forward pass "
    "with all logits (one forward, two backward); masked pairs are not counted.",
    "MFU: % of the arithmetic rate below.",
)
PASS_PEAK, TRAINING_PEAK = "cache and passes", "gradients, the optimiser's moments and activations"
TEST_COLUMNS = (Column("model", "model", width=13), Column("test", "test", width=13), Column("by", "by", width=12))


def rows(results: Results) -> list[Row]:
    """Returns one row for each candidate and workload that was timed at least once."""
    machine = ceilings.measured_device(ceiling_rows(results))
    pairs = [(candidate, work) for candidate in results.candidates for work in results.config.workloads]
    found = [_row(each, work, results, machine) for each, work in pairs if each.key(work) in results.timed]
    # The baseline is transformers with its defaults or, for several ranks, one process in the same mode.
    keys = [(row["model"], row["swap"], row["test"], row["mode"] if row["ranks"] > 1 else None) for row in found]
    baselines = {
        key: row
        for key, row in zip(keys, found, strict=True)
        if row["implementation"] == ONE_PROCESS or (row["implementation"] != ZOO and row["mode"] != COMPILED)
    }
    for key, row in zip(keys, found, strict=True):
        baseline = baselines.get(key, row)
        row["ratio"] = None if baseline is row else row["tokens_per_s"] / baseline["tokens_per_s"]
    return found


def ceiling_rows(results: Results) -> list[Row]:
    """Returns a row for each kernel that was timed: bytes or FLOPs per second."""
    return [
        {
            "table": "ceilings",
            "kind": kernel.kind,
            "kernel": kernel.name,
            "dtype": dtype_name(kernel.dtype),
            "device": str(results.config.device),
            "threads": results.config.threads,
            "amount": kernel.amount,
            **rate(kernel.amount, seconds)._asdict(),
            "seconds": seconds,
        }
        for kernel in results.kernels
        if (seconds := results.timed.get(kernel.key))
    ]


def harness_key(work: Workload) -> Key:
    """Returns the key of the samples that time a workload with a model that computes nothing."""
    return ("harness", work.label)


def _row(candidate: Candidate, work: Workload, results: Results, machine: Device | None) -> Row:
    config, model, key = results.config, candidate.model, candidate.key(work)
    seconds, tokens = results.timed[key], work.batch * work.tokens
    speed = rate(tokens, seconds)
    # Experts and GEMMs are observed in the zoo's eager mode. They are the same for every implementation.
    eager_key = (model.label, ZOO, EAGER, work.label)
    seen, hits = results.observed.get(key), results.observed.get(eager_key, Observed()).hits
    is_whole = candidate.implementation == ONE_PROCESS
    machine = None if is_whole else machine  # the ceilings are measured while all processes read or compute
    spec = model.spec if is_whole else config.ranks.own(model.spec)
    hits = {} if config.ranks.whole_experts else hits  # the hits count the experts of all ranks
    gemms = results.timed.get(gemm_key(eager_key)) if candidate.implementation == ZOO else None
    harness = results.timed.get(harness_key(work))
    least = least_work(spec, work, config.dtype, hits)
    least_bytes = least.weight_bytes + least.kv_bytes  # training counts no bytes
    row = {
        "table": "throughput",
        **about(model.entry),
        "tiny": model.tiny,
        "weights": model.source.path.name if model.source else "random",
        "layers": len(model.spec.layers),
        "params": model.spec.params(),
        "ranks": config.ranks.count,
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
        "weight_bytes_read": round(least.weight_bytes) if least_bytes else None,
        "kv_bytes_read": least.kv_bytes if least_bytes else None,
        "experts_hit": fmean(hits.values()) if hits else None,
        "experts_hit_predicted": predicted_hits(model.spec, work),
        "ceiling_tokens_per_s": machine and least.tokens_per_s(machine),
        "mbu": machine and least_bytes * speed.median / tokens / machine.bandwidth if least_bytes else None,
        "mfu": machine and least.flops * speed.median / tokens / machine.flops,
        "gemms_tokens_per_s": rate(tokens, gemms).median if gemms else None,
        "peak_bytes": seen.peak_bytes if seen else None,
        "overhead": median(harness) / median(seconds) if harness else None,
        "ratio": None,
    }
    exchanges = None if is_whole else results.timed.get(exchange_key(model.label, work))
    row |= parts_of_a_step(row, machine, exchanges, len(work.passes))
    return row | {"marks": _marks(row, results, key)}


def least_work(spec: Decoder, work: Workload, dtype: torch.dtype, hits: dict[int, float]) -> Pass:
    """Returns the FLOPs of all passes of a workload, and the least number of bytes that they read.

    Each pass reads the cache with the new tokens, and the weights once. Unused rows of the embedding and experts that
    no token hits do not count. `hits`: {layer: measured number of experts hit}; other layers use the expected number.
    For training, only FLOPs are counted.
    """
    if work.phase == "train":
        return Pass(work.batch * work.tokens, training_flops(spec, work), weight_bytes=0, kv_bytes=0)
    batch, passes = work.batch, work.passes
    new = passes[0][1]
    read: float = spec.read_params(batch * new)
    for index, hit in hits.items():
        block = spec.layers[index].mixture
        assert block is not None
        read += (hit - expected_hits(block, batch * new)) * block.expert_params(spec.dim)
    return Pass(
        tokens=batch * work.tokens,
        flops=batch * sum(spec.flops(past, new, logits=1) for past, new in passes),
        weight_bytes=len(passes) * read * dtype.itemsize,
        kv_bytes=sum(spec.kv_bytes(past + new, batch, dtype) for past, new in passes),
    )


def expected_hits(block: MoE, tokens: int) -> float:
    """Returns the expected number of distinct experts that `tokens` tokens hit: E (1 - (1 - k/E)^tokens).

    Each token hits k of the E experts, which are assumed to be equally likely.
    """
    return block.experts * (1 - (1 - block.router.k / block.experts) ** tokens)


def predicted_hits(spec: Decoder, work: Workload) -> float | None:
    """Returns the mean `expected_hits` of a pass over the layers with experts; None if no layer has experts."""
    tokens = work.batch * work.passes[0][1]
    hits = [expected_hits(layer.mixture, tokens) for layer in spec.layers if layer.mixture]
    return fmean(hits) if hits else None


def trains(row: Row) -> bool:
    """Whether the row measures training."""
    return bool(row["phase"] == "train")


def _marks(row: Row, results: Results, key: Key) -> list[str]:
    """Returns the keys of SIGNS that apply to a row: warnings about its figures."""
    config, cache = results.config, last_cache(results.config.device)
    holds = {
        "above_bandwidth": (row["mbu"] or 0) > 1,
        "above_matmul_rate": (row["mfu"] or 0) > 1,
        # A compiled model computes the last token's logits as a reduction, faster than the library's GEMM.
        "above_gemms": row["mode"] == EAGER and row["tokens_per_s"] > (row["gemms_tokens_per_s"] or inf),
        "weights_in_cache": not trains(row) and cache is not None and row["params"] * config.dtype.itemsize < cache,
        "not_settled": key in results.samples and not settled(results.warmups.get(key, ())),
        "warming_up": key not in results.samples,
    }
    return [mark for mark, is_so in holds.items() if is_so]


def tables(rows: Rows, kernels: Rows, machine: Row) -> Iterator[Table]:
    """Yields the tables of speeds, of shares of the ceilings, of parts of a pass, and of ceilings, ordered by test."""
    tests = list(dict.fromkeys(row["test"] for row in rows))
    rows = sorted(rows, key=lambda row: tests.index(row["test"]))
    yield speeds(rows, machine)
    if kernels:
        yield limits(rows, machine)
        if divided := [row for row in rows if row["step_seconds"] is not None]:
            yield steps(divided)
        yield machine_ceilings(kernels)


def speeds(rows: Rows, machine: Row) -> Table:
    """Returns the table of tokens per second in each test."""
    shown = [
        *TEST_COLUMNS,
        *columns(format_count, tokens_per_s="tokens/s"),
        *columns(spread="std", range="min-max"),
        *columns(three, ratio="speedup"),
    ]
    first, weights = rows[0], ", ".join(dict.fromkeys(row["weights"] for row in rows))
    several = f"one process, in the same mode, with as many threads as each of the {first['ranks']}"
    baseline = several if first["ranks"] > 1 else "transformers with its defaults"
    gpu = f"{machine['gpu']}, driver {machine['driver']}; " if machine["gpu"] else ""
    legend = [
        TRAINING_LEGEND
        if trains(first)
        else "ppN: prefill of N tokens in one pass. tgN: decode of N tokens, one at a time, after a first token. "
        "Tokens per second over all sequences.",
        *(["@ dN: N tokens are already in the cache."] if any(row["depth"] for row in rows) else []),
        *([f"speedup: relative to {baseline}."] if any(row["ratio"] for row in rows) else []),
        *(["Tiny models have toy widths and measure the code's overhead."] if any(row["tiny"] for row in rows) else []),
        f"{repetitions(rows)}, models taking turns; {first['dtype']}, batch {first['batch']}, {first['device']}, "
        f"weights {weights}.",
        f"{machine['cpu']}, {first['threads']} of {machine['cores']} cores, {' '.join(machine['isa'])}; "
        f"{gpu}torch {machine['torch']}, {machine['blas']}.",
        f"{kernel_summary(machine)}.",
    ]
    return Table("Tokens per second, as measured", shown, legend, rows, derive=_cells)


def _cells(row: Row) -> Row:
    gemms = row["gemms_tokens_per_s"]
    return {
        "by": by(row),
        "spread": f"{row['tokens_per_s_std'] / row['tokens_per_s']:.0%}",
        "range": min_max(row, "tokens_per_s", format_count),
        "gemms": gemms and row["tokens_per_s"] / gemms,
        "signs": "".join(dict.fromkeys(SIGNS[mark] for mark in row["marks"])) or None,
    }


def by(row: Row) -> str:
    """Returns the implementation and mode as text, such as "zoo compiled"; "eager" is left out for the zoo."""
    who, how = row["implementation"], row["mode"]
    if row["ranks"] > 1:
        who = f"{row['ranks']} processes" if who == ZOO else who
        return who if how == EAGER else f"{who} {how}"
    return who if (who, how) == (ZOO, EAGER) else f"{who} {how}"


def repetitions(rows: Rows) -> str:
    """Describes the numbers of repetitions and warm-up rounds, as in "Medians of 5 repetitions after 4 rounds ..."."""
    counted, warm = {len(row["seconds"]) for row in rows}, {row["warmups"] for row in rows}
    times = "One repetition" if counted == {1} else f"Medians of {_span(counted, 'repetition')}"
    if warm == {0}:
        return f"{times} of the warm-up, which was interrupted"
    return f"{times} after {_span(warm, 'round')} of warm-up"


def _span(numbers: set[int], what: str) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low} {what}{'s' * (high != 1)}" if low == high else f"{low} to {high} {what}s"


def limits(rows: Rows, machine: Row) -> Table:
    """Returns the table of each speed as a share of the machine's ceilings, with the peak memory."""
    large = max(row["peak_bytes"] or 0 for row in rows) >= 2**30
    word, of, digits = ("GiB", 2**30, 2) if large else ("MiB", 2**20, 1)
    shown = [
        *TEST_COLUMNS,
        *columns(format_count, ceiling_tokens_per_s="ceiling"),
        *columns(_percent, mbu="MBU", mfu="MFU", gemms="GEMMs"),
        *columns(unit(of, digits), peak_bytes=word),
        *columns(signs=""),
    ]
    largest = max(rows, key=lambda row: row["overhead"] or 0)
    experts = dict.fromkeys(
        f"{named(row)} {row['test']} {row['experts_hit']:.1f} ({row['experts_hit_predicted']:.1f} expected)"
        for row in rows
        if row["experts_hit"] is not None
    )
    used = {SIGNS[mark] for row in rows for mark in row["marks"]}
    legend = [
        *(TRAINING_LIMITS if trains(rows[0]) else PASS_LIMITS),
        f"{word}: memory of the weights, plus the peak of {TRAINING_PEAK if trains(rows[0]) else PASS_PEAK}.",
        *([f"Experts hit per pass, mean over the layers with experts: {'; '.join(experts)}."] if experts else []),
        f"Harness overhead: at most {largest['overhead'] or 0:.2%} of the time ({named(largest)} {largest['test']}), "
        "the time of the same loop with a model that computes nothing.",
        *(f"{sign}: {meaning}" for sign, meaning in MEANINGS.items() if sign in used),
        *([CACHE_UNKNOWN] if machine["last_cache_bytes"] is None and not trains(rows[0]) else []),
    ]
    return Table("Shares of the ceilings", shown, legend, rows, derive=_cells)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def steps(rows: Rows) -> Table:
    """Returns the table of the parts of a pass (reading, computing, exchange) for models in several processes."""
    ms = three_in(1e-3)
    shown = [
        *TEST_COLUMNS,
        *columns(ms, step_seconds="step", read_seconds="read", compute_seconds="compute", exchange_seconds="exchange"),
        *columns(lambda ratio: f"{ratio:.2f}", of_predicted="ratio"),
    ]
    legend = [
        f"Milliseconds of a pass in one of {rows[0]['ranks']} processes, medians. step: the whole pass. read: its "
        "share of weights and cache at the bandwidth below, which all processes share. compute: its FLOPs at the "
        "arithmetic rate below.",
        "exchange: its collectives alone, in turns with the passes. ratio: step / (the longer of read and compute, "
        "plus exchange).",
    ]
    return Table("Parts of a pass", shown, legend, rows, derive=_cells)


def machine_ceilings(rows: Rows) -> Table:
    """Returns the table of the machine's measured ceilings, by kernel."""
    shown = columns(kind="ceiling", kernel="kernel", dtype="dtype", shown="median", range="min-max")
    size = next((row["amount"] for row in rows if row["kind"] == "bandwidth"), 0)
    short = ", limited by the free memory" if size < ceilings.BUFFER_BYTES else ""
    legend = [
        f"The fastest kernel of each kind is the ceiling. Each bandwidth kernel reads {format_bytes(size)}{short}. "
        "GB/s and GFLOPS are 10^9 per second.",
        "Kernels run in every round, in turns with the models.",
    ]

    def cells(row: Row) -> Row:
        word, show = "GB/s" if row["kind"] == "bandwidth" else "GFLOPS", three_in(1e9)
        return {"shown": f"{show(row['median'])} {word}", "range": f"{show(row['min'])}-{show(row['max'])}"}

    return Table("Ceilings of this machine", shown, legend, rows, derive=cells)
