"""docs/performance.md: a section for each processor, from the samples in docs/performance/<slug>.json.

python -m benchmarks.performance                            write the page again
python -m benchmarks.performance --processor SLUG FILE ...  first gather files of `throughput --json --out FILE` there

The text between a section's markers is generated: facts of the processor, a table of speeds, missed targets. All other
text on the page is written by hand and stays.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.measure.environment import kernel_summary, merged
from benchmarks.measure.runners import COMPILED, EAGER, ZOO
from benchmarks.measure.timing import PairedRatio, paired_ratio
from benchmarks.output.report import Row, columns
from benchmarks.output.show import three
from zoo.cli.tables import SCHEMA_VERSION, Format, render
from zoo.errors import MalformedError, NotAvailable, ZooError
from zoo.units import format_bytes, format_count

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
FOLDER = PAGE.with_suffix("")
SPEEDS = "throughput"  # the table of the rows that are compared
EARLIER = "before"  # samples of the zoo before it was made fast: kept, without a section
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
BEGIN, END = "<!-- measured: {} -->\n", "<!-- end -->\n"
SECTION = re.compile(r"<!-- measured: (\S+) -->\n.*?<!-- end -->\n", re.DOTALL)
SHARED = ("cpu", "isa", "cores", "torch", "device")  # facts that all documents of a processor have in common

# Targets. Ratios are speeds over transformers' in the same rounds.
DECODE_DEPTH = 512  # tokens in the cache where compiled decode is judged
BANDWIDTH_DENSE_FLOAT32, BANDWIDTH_BFLOAT16 = 0.85, 0.75  # parts of the read bandwidth that compiled decode reaches
DECODE_RATIO, MIN_MAX_SPEEDUP = 2.0, 2.3  # compiled decode, wherever the max speedup is at least the second
PREFILL_RATIO, PREFILL_GEMMS = 1.05, 0.95  # compiled prefill: either of the two
# Extensions that name a processor's vectors, the widest first.
VECTORS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "sve2": "SVE2", "sve": "SVE", "asimd": "NEON"}


def kept(folder: Path = FOLDER) -> dict[str, Path]:
    """The samples that come with the repository: slug of the processor -> file."""
    return {file.stem: file for file in sorted(folder.glob("*.json")) if file.stem != EARLIER}


def read(file: Path, verb: str = SPEEDS) -> Row:
    """A document of `python -m benchmarks throughput --json`, or of another verb. Raises NotAvailable for a file that
    cannot be read, MalformedError for another document and for one of another schema version."""
    wrong = f"{file}: not a document of python -m benchmarks {verb} --json"
    try:
        document: Row = json.loads(file.read_text(encoding="utf-8"))
        version = document["schema_version"]
        if not isinstance(document["machine"], dict) or not all("table" in row for row in document["rows"]):
            raise MalformedError(wrong)
    except (OSError, UnicodeDecodeError) as error:
        raise NotAvailable(f"cannot read {file}: {getattr(error, 'strerror', None) or 'it is not text'}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise MalformedError(wrong) from error
    if version != SCHEMA_VERSION:
        author = f"{'an older' if version == 1 else 'another'} version (schema_version {version})"
        raise MalformedError(f"{file}: written by {author}; this version reads {SCHEMA_VERSION}")
    return document


def gather(files: Sequence[Path]) -> Row:
    """One document from several that were measured on the same processor: all their rows, under the first one's facts.

    A test that several files hold is the last one's, since its rounds belong together. Raises what `read` does, and
    MalformedError for a file of another processor.
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
    return documents[0] | {"machine": machines[0] | _kernels(machines), "complete": complete, "rows": rows}


def _kernels(machines: Sequence[Row]) -> Row:
    """The choices of all processes; nothing where none was recorded."""
    recorded = [machine for machine in machines if "kernels" in machine]
    settings = {machine.get("kernels_set") for machine in recorded}
    if len(settings) > 1:
        raise MalformedError(f"the files were measured with different ZOO_KERNELS: {', '.join(map(str, settings))}")
    choices = merged(machine["kernels"] for machine in recorded)
    return {"kernels": choices, "kernels_set": settings.pop()} if recorded else {}


def key_of(row: Row) -> tuple[str, str, str]:
    """What was timed together: a model, in a dtype, in one test."""
    return row["model"], row["dtype"], row["test"]


def page(text: str, documents: dict[str, Row]) -> str:
    """The page with a generated section for each document, by slug.

    A section stays where its markers are; a new one follows the last; one without a document is removed.
    """
    sections = {slug: f"{BEGIN.format(slug)}{section(slug, each)}\n\n{END}" for slug, each in documents.items()}
    text = SECTION.sub(lambda found: sections.get(found[1], ""), text)
    for slug, block in sections.items():
        if BEGIN.format(slug) not in text:
            before, end, after = text.rpartition(END)
            text = f"{before}{end}\n{block}{after}" if end else f"{text.rstrip()}\n\n{block}"
    return text


def section(slug: str, document: Row) -> str:
    """Heading, facts, table and missed targets as Markdown. `document`: what `throughput --json` writes."""
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
    summary = kernel_summary(machine) or "kernels: not recorded in these samples"
    yield f"{summary[:1].upper()}{summary[1:]}"
    yield f"Samples: [performance/{slug}.json](performance/{slug}.json), commit {(machine['commit'] or 'unknown')[:7]}"


def compared(document: Row) -> list[Row]:
    """A row for each model, dtype and test, in the order of the document."""
    tests: dict[tuple[str, str, str], list[Row]] = {}
    for row in (row for row in document["rows"] if row["table"] == SPEEDS):
        tests.setdefault(key_of(row), []).append(row)
    return [_compared(rows) for rows in tests.values()]


def _compared(rows: Sequence[Row]) -> Row:
    """One test: transformers as it runs by default, the zoo in both modes, and what the machine would have allowed.

    The parts of the bandwidth and of the GEMMs are the compiled model's, the eager one's where none was compiled.
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
    """The tests as a Markdown table."""
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
    """A ratio with its 95 % interval: "1.93 (1.88 to 1.99)"."""
    ends = f"{three(found.low)} to {three(found.high)}" if found.low else "one round"
    return f"{three(found.ratio)} ({ends})"


def misses(test: Row) -> Iterator[str]:
    """A sentence for each target that a test misses."""
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


def write(slug: str | None, files: Sequence[Path], page_file: Path, folder: Path) -> None:
    """Gather the files as the samples of a processor, if there are any, and write the page."""
    if slug is not None:
        text = json.dumps(gather(files), indent=1)
        folder.mkdir(exist_ok=True)
        (folder / f"{slug}.json").write_text(text + "\n", encoding="utf-8")
    documents = {name: read(file) for name, file in kept(folder).items()}
    page_file.write_text(page(page_file.read_text(encoding="utf-8"), documents), encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.performance", description="Write docs/performance.md.")
    processor = "such as amd-epyc-avx512: the files' rows become its samples"
    parser.add_argument("--processor", metavar="SLUG", help=processor)
    parser.add_argument("files", metavar="FILE", nargs="*", type=Path, help="of python -m benchmarks throughput --json")
    asked = parser.parse_args(arguments)
    if (asked.processor is None) != (not asked.files):
        parser.error("--processor SLUG and FILE ... go together")
    if asked.processor is not None and (asked.processor == EARLIER or not SLUG.fullmatch(asked.processor)):
        parser.error(f"--processor {asked.processor}: must be lower-case words joined by -, such as amd-epyc-avx512")
    try:
        write(asked.processor, asked.files, PAGE, FOLDER)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
