"""The sections of docs/performance.md: one for each processor, from the samples in docs/performance/SLUG.json.

A section holds facts about the processor, a table of speeds, and missed targets.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.measure.environment import kernel_summary, merged
from benchmarks.measure.runners import COMPILED, EAGER, ZOO
from benchmarks.measure.timing import PairedRatio, paired_ratio
from benchmarks.output.report import DOCS, Row, columns, kept, read
from benchmarks.output.show import three
from zoo.cli.tables import Format, render
from zoo.errors import MalformedError, UsageError
from zoo.units import format_bytes, format_count

FOLDER = DOCS / "performance"
SPEEDS = "throughput"  # the table whose rows are compared
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
SHARED = ("cpu", "isa", "cores", "torch", "device", "kernels_set")  # equal in all documents of a processor

# Targets. Ratios are the zoo's speed over transformers' speed in the same rounds.
DECODE_DEPTH = 512  # tokens in the cache for the targets of compiled decode
BANDWIDTH_DENSE_FLOAT32, BANDWIDTH_BFLOAT16 = 0.85, 0.75  # minimum shares of the read bandwidth in compiled decode
DECODE_RATIO, MIN_MAX_SPEEDUP = 2.0, 2.3  # compiled decode must reach the first if the max speedup reaches the second
PREFILL_RATIO, PREFILL_GEMMS = 1.05, 0.95  # compiled prefill must reach one of the two
# ISA extension -> name of its vector instructions, the widest first.
VECTORS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "sve2": "SVE2", "sve": "SVE", "asimd": "NEON"}


def sections() -> dict[str, str]:
    """Returns {slug of a processor: its section}."""
    return {slug: section(slug, read(file)) for slug, file in kept(FOLDER).items()}


def keep(slug: str, files: Sequence[Path]) -> None:
    """Writes the rows of the files as the samples of a processor.

    Raises the errors of `gather`, and UsageError for an invalid slug.
    """
    if not SLUG.fullmatch(slug):
        raise UsageError(f"--processor {slug}: must be lower-case words joined by -, such as amd-epyc-avx512")
    text = json.dumps(gather(files), indent=1)
    (FOLDER / f"{slug}.json").write_text(f"{text}\n", encoding="utf-8")


def gather(files: Sequence[Path]) -> Row:
    """Returns one document, with the rows of all files and the header of the first file.

    If several files contain the same test, only the last file's rows of that test count, since the rounds of a test
    belong together. Raises the errors of `read`, and MalformedError for a file from another processor.
    """
    documents = [read(file) for file in files]
    machines = [document["machine"] for document in documents]
    for file, machine in zip(files, machines, strict=True):
        for fact in SHARED:
            here, first = machine.get(fact), machines[0].get(fact)
            if here != first:
                raise MalformedError(f"{file}: {fact} is {here}, and {first} in {files[0]}")
    numbered = [(n, row) for n, document in enumerate(documents) for row in document["rows"]]
    last = {key_of(row): n for n, row in numbered if row["table"] == SPEEDS}
    rows = [row for n, row in numbered if row["table"] != SPEEDS or last[key_of(row)] == n]
    complete = all(document.get("complete", True) for document in documents)
    machine = machines[0] | {"kernels": merged(machine["kernels"] for machine in machines)}
    return documents[0] | {"machine": machine, "complete": complete, "rows": rows}


def key_of(row: Row) -> tuple[str, str, str]:
    """Returns the key that rows share if they were timed together: model, dtype and test."""
    return row["model"], row["dtype"], row["test"]


def section(slug: str, document: Row) -> str:
    """Returns heading, facts, table and missed targets as Markdown. `document`: the output of `throughput --json`."""
    tests, machine = compared(document), document["machine"]
    vectors = next((name for extension, name in VECTORS.items() if extension in machine["isa"]), None)
    title = ", ".join(filter(None, [machine["cpu"], vectors, machine["gpu"]]))
    facts = "\n".join(f"- {fact}" for fact in _facts(slug, document))
    missed = "\n".join(f"- {line}" for test in tests for line in misses(test))
    verdict = f"Below the targets:\n\n{missed}" if missed else "None of these rows is below a target."
    return f"## {title}\n\n{facts}\n\n{table(tests)}\n\n{verdict}"


def _facts(slug: str, document: Row) -> Iterator[str]:
    machine = document["machine"]
    threads = sorted({row["threads"] for row in document["rows"] if "threads" in row})
    cache = f", last cache {format_bytes(machine['last_cache_bytes'])}" if machine["last_cache_bytes"] else ""
    yield f"Processor: {machine['cpu']}, {machine['cores']} cores{cache}"
    yield f"ISA: {' '.join(machine['isa'])}"
    yield f"Threads: {', '.join(map(str, threads))}"
    yield f"torch {machine['torch']} with {machine['blas']}"
    summary = kernel_summary(machine)
    yield f"{summary[:1].upper()}{summary[1:]}"
    yield f"Samples: [performance/{slug}.json](performance/{slug}.json), commit {(machine['commit'] or 'unknown')[:7]}"


def compared(document: Row) -> list[Row]:
    """Returns a row for each model, dtype and test, in the order of the document."""
    tests: dict[tuple[str, str, str], list[Row]] = {}
    for row in (row for row in document["rows"] if row["table"] == SPEEDS):
        tests.setdefault(key_of(row), []).append(row)
    return [_compared(rows) for rows in tests.values()]


def _compared(rows: Sequence[Row]) -> Row:
    """Returns the row of one test: transformers with its defaults, the zoo in both modes, and ratios.

    Shares of the bandwidth and of the GEMMs are the compiled model's, or the eager model's if none was compiled.
    """
    by_mode = {row["mode"]: row for row in rows if row["implementation"] == ZOO}
    baseline = next((row for row in rows if row["implementation"] != ZOO and row["mode"] != COMPILED), None)
    eager, compiled = by_mode.get(EAGER), by_mode.get(COMPILED)
    best = compiled or eager
    assert best is not None
    gemms = best["gemms_tokens_per_s"]
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
    """Returns the tests as a Markdown table."""
    shown = [
        *columns(model="model", dtype="dtype", test="test"),
        *columns(format_count, baseline="transformers tokens/s", eager="zoo eager tokens/s"),
        *columns(interval, eager_ratio="vs transformers"),
        *columns(format_count, compiled="compiled tokens/s"),
        *columns(interval, compiled_ratio="vs transformers"),
        *columns(three, max_speedup="max speedup"),
        *columns("{:.0%}".format, bandwidth="% of bandwidth", gemms="% of GEMMs alone"),
    ]
    return render(tests, shown, Format.md)


def interval(found: PairedRatio) -> str:
    """Formats a ratio with its 95 % interval: "1.93 (1.88 to 1.99)"."""
    ends = f"{three(found.low)} to {three(found.high)}" if found.low else "one round"
    return f"{three(found.ratio)} ({ends})"


def misses(test: Row) -> Iterator[str]:
    """Yields a sentence for each target that a test misses."""
    name = f"{test['model']}, {test['dtype']}, {test['test']}"
    if (eager := test["eager_ratio"]) and eager.high < 1:
        yield f"{name}: eager is {interval(eager)} times as fast as transformers; the interval should reach 1.0"
    if test["compiled"] is None:
        return
    ratio, part = test["compiled_ratio"], test["bandwidth"]
    if test["phase"] == "decode" and test["depth"] == DECODE_DEPTH:
        float32 = BANDWIDTH_DENSE_FLOAT32 if test["dense"] else None
        least = {"bfloat16": BANDWIDTH_BFLOAT16, "float32": float32}.get(test["dtype"])
        if least and part is not None and part < least:
            yield f"{name}: compiled decode reads at {part:.1%} of the bandwidth; the target is {least:.0%}"
        if ratio and (test["max_speedup"] or 0) >= MIN_MAX_SPEEDUP and ratio.ratio < DECODE_RATIO:
            target = f"{DECODE_RATIO}, with a max speedup of {three(test['max_speedup'])}"
            yield f"{name}: compiled decode is {interval(ratio)} times as fast as transformers; the target is {target}"
    if test["phase"] == "train" and ratio and ratio.high < 1:
        speed = f"{interval(ratio)} times as fast as transformers"
        yield f"{name}: compiled training is {speed}; the interval should reach 1.0"
    gemms = test["gemms"] or 0
    if test["phase"] == "prefill" and ratio and ratio.ratio < PREFILL_RATIO and gemms < PREFILL_GEMMS:
        alone = f" and runs at {gemms:.1%} of its GEMMs alone" if gemms else ""
        speed = f"{interval(ratio)} times as fast as transformers{alone}"
        target = f"{PREFILL_RATIO}, or {PREFILL_GEMMS:.0%} of the GEMMs"
        yield f"{name}: compiled prefill is {speed}; the target is {target}"
