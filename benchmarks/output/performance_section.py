"""The generated section of docs/performance.md for one processor: its facts, a table of speeds, missed targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.measure.environment import kernel_summary
from benchmarks.measure.throughput import COMPILED, EAGER, ZOO
from benchmarks.measure.timing import PairedRatio, paired_ratio
from benchmarks.output.show import three
from zoo.cli.tables import Column, Format, render
from zoo.units import format_bytes, format_count

Row = dict[str, Any]

# Targets. Ratios are speeds over transformers' in the same rounds.
DECODE_DEPTH = 512  # tokens in the cache where compiled decode is judged
BANDWIDTH_DENSE_FLOAT32, BANDWIDTH_BFLOAT16 = 0.85, 0.75  # parts of the read bandwidth that compiled decode reaches
DECODE_RATIO, WORTHWHILE = 2.0, 2.3  # compiled decode, wherever the max speedup is at least the second
PREFILL_RATIO, PREFILL_GEMMS = 1.05, 0.95  # compiled prefill: either of the two
# Extensions that name a processor's vectors, the widest first.
VECTORS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "sve2": "SVE2", "sve": "SVE", "asimd": "NEON"}


def section(slug: str, document: Row) -> str:
    """Heading, facts, table and misses as Markdown. `document`: what `throughput --json` writes."""
    tests = compared(document)
    missed = [f"- {line}" for test in tests for line in misses(test)]
    return "\n\n".join(
        [
            f"## {_heading(document['machine'])}",
            "\n".join(f"- {fact}" for fact in _facts(slug, document)),
            table(tests),
            *(["Below the targets:", "\n".join(missed)] if missed else ["None of these rows is below a target."]),
        ]
    )


def _heading(machine: Row) -> str:
    vectors = next((name for extension, name in VECTORS.items() if extension in machine["isa"]), None)
    return ", ".join(filter(None, [machine["cpu"], vectors, machine["gpu"]]))


def _facts(slug: str, document: Row) -> Iterator[str]:
    machine = document["machine"]
    threads = sorted({row["threads"] for row in document["rows"] if "threads" in row})
    cache = machine["last_cache_bytes"]
    last_cache = f", last cache {format_bytes(cache)}" if cache else ""
    yield f"Processor: {machine['cpu']}, {machine['cores']} cores{last_cache}"
    yield f"ISA: {' '.join(machine['isa'])}"
    yield f"Threads: {', '.join(map(str, threads))}"
    yield f"torch {machine['torch']} with {machine['blas']}"
    summary = kernel_summary(machine) or "kernels: not recorded in these samples"
    yield f"{summary[:1].upper()}{summary[1:]}"
    yield f"Samples: [performance/{slug}.json](performance/{slug}.json), commit {(machine['commit'] or 'unknown')[:7]}"


def key_of(row: Row) -> tuple[str, str, str]:
    """What was timed together: a model, in a dtype, in one test."""
    return row["model"], row["dtype"], row["test"]


def compared(document: Row) -> list[Row]:
    """A row for each model, dtype and test, in the order of the document."""
    rows = [row for row in document["rows"] if row["table"] == "throughput"]
    tests = dict.fromkeys(map(key_of, rows))
    return [_row([row for row in rows if key_of(row) == test]) for test in tests]


def _row(rows: Sequence[Row]) -> Row:
    """One test: transformers as it runs by default, the zoo in both modes, and what the machine would have allowed.

    The parts of the bandwidth and of the GEMMs are the compiled model's, the eager one's where none was compiled.
    """
    by_mode = {row["mode"]: row for row in rows if row["implementation"] == ZOO}
    baseline = next((row for row in rows if row["implementation"] != ZOO and row["mode"] != COMPILED), None)
    eager, compiled = by_mode.get(EAGER), by_mode.get(COMPILED)
    best = compiled or eager
    assert best is not None
    gemms = best["own_matrices_tokens_per_s"]
    limit = gemms or best["ceiling_tokens_per_s"]
    return {
        **{name: best[name] for name in ("model", "dtype", "test", "phase", "depth")},
        "dense": best["experts_hit_predicted"] is None,
        "baseline": baseline and baseline["tokens_per_s"],
        "eager": eager and eager["tokens_per_s"],
        "eager_ratio": _ratio(eager, baseline),
        "compiled": compiled and compiled["tokens_per_s"],
        "compiled_ratio": _ratio(compiled, baseline),
        "max_speedup": baseline and limit and limit / baseline["tokens_per_s"],
        "bandwidth": best["mbu"] if best["phase"] == "decode" else None,
        "gemms": gemms and best["tokens_per_s"] / gemms,
    }


def _ratio(row: Row | None, baseline: Row | None) -> PairedRatio | None:
    return paired_ratio(row["seconds"], baseline["seconds"]) if row and baseline else None


def table(tests: Sequence[Row]) -> str:
    """The tests as a Markdown table."""
    columns = [
        Column("model", "model"),
        Column("dtype", "dtype"),
        Column("test", "test"),
        Column("baseline", "transformers tokens/s", format_count),
        Column("eager", "zoo eager tokens/s", format_count),
        Column("eager_ratio", "vs transformers", interval),
        Column("compiled", "compiled tokens/s", format_count),
        Column("compiled_ratio", "vs transformers", interval),
        Column("max_speedup", "max speedup", three),
        Column("bandwidth", "% of bandwidth", percent),
        Column("gemms", "% of GEMMs alone", percent),
    ]
    return render(tests, columns, Format.md)


def interval(found: PairedRatio) -> str:
    """A ratio with its 95 % interval: "1.93 (1.88 to 1.99)"."""
    ends = f"{three(found.low)} to {three(found.high)}" if found.low else "one round"
    return f"{three(found.ratio)} ({ends})"


def percent(part: float) -> str:
    """A part of something in percent."""
    return f"{part:.0%}"


def misses(test: Row) -> Iterator[str]:
    """A sentence for each target that a test does not reach."""
    name = f"{test['model']}, {test['dtype']}, {test['test']}"
    if (eager := test["eager_ratio"]) and eager.high < 1:
        yield f"{name}: eager is {interval(eager)} times as fast as transformers; the interval should reach 1.0"
    if test["compiled"] is None:
        return
    ratio, part = test["compiled_ratio"], test["bandwidth"]
    if test["phase"] == "decode" and test["depth"] == DECODE_DEPTH:
        least = _least_bandwidth(test)
        if least and part is not None and part < least:
            yield f"{name}: compiled decode reads at {part:.1%} of the bandwidth; the target is {percent(least)}"
        if ratio and (test["max_speedup"] or 0) >= WORTHWHILE and ratio.ratio < DECODE_RATIO:
            yield (
                f"{name}: compiled decode is {interval(ratio)} times as fast as transformers; the target is "
                f"{DECODE_RATIO}, with a max speedup of {three(test['max_speedup'])}"
            )
    gemms = test["gemms"] or 0
    if test["phase"] == "prefill" and ratio and ratio.ratio < PREFILL_RATIO and gemms < PREFILL_GEMMS:
        alone = f" and runs at {gemms:.1%} of its GEMMs alone" if gemms else ""
        yield (
            f"{name}: compiled prefill is {interval(ratio)} times as fast as transformers{alone}; the target is "
            f"{PREFILL_RATIO}, or {percent(PREFILL_GEMMS)} of the GEMMs"
        )


def _least_bandwidth(test: Row) -> float | None:
    """The part of the bandwidth that compiled decode should reach; None where no target is set."""
    if test["dtype"] == "bfloat16":
        return BANDWIDTH_BFLOAT16
    return BANDWIDTH_DENSE_FLOAT32 if test["dtype"] == "float32" and test["dense"] else None
