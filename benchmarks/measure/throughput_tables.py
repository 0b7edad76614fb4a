"""Throughput rows as tables: how fast, and what this machine would have allowed."""

from collections.abc import Iterator

from benchmarks.measure.ceilings import BUFFER_BYTES
from benchmarks.measure.environment import kernel_summary
from benchmarks.measure.runners import EAGER, ZOO
from benchmarks.measure.timing import MAX_WARMUP_ROUNDS, MAX_WARMUP_SECONDS
from benchmarks.output.report import Row, Rows, Table, columns, named
from benchmarks.output.show import min_max, three, three_in, unit
from zoo.cli.tables import Column
from zoo.units import format_bytes, format_count

# Mark of a row -> its sign in the table; sign -> what it means.
ABOVE = dict.fromkeys(("above_bandwidth", "above_matmul_rate", "above_gemms"), "!")
SIGNS = ABOVE | {"weights_in_cache": "c", "not_settled": "~", "warming_up": "w"}
MEANINGS = {
    "!": "above a ceiling: the machine was not the same all the time, or the figure is read from a cache.",
    "c": "the weights fit into the last cache, so the memory's bandwidth is no ceiling.",
    "w": "interrupted during its warm-up: nothing counts yet.",
    "~": f"not settled when the warm-up ended, after {MAX_WARMUP_ROUNDS} rounds or {MAX_WARMUP_SECONDS} s.",
}
TEST_COLUMNS = (Column("model", "model", width=13), Column("test", "test", width=13), Column("by", "by", width=12))


def tables(rows: Rows, ceilings: Rows, machine: Row) -> Iterator[Table]:
    """Speeds, the ceilings of each, and the machine's ceilings; rows of one test stand together."""
    tests = list(dict.fromkeys(row["test"] for row in rows))
    rows = sorted(rows, key=lambda row: tests.index(row["test"]))
    yield speeds(rows, machine)
    if ceilings:
        yield limits(rows, machine)
        yield machine_ceilings(ceilings)


def speeds(rows: Rows, machine: Row) -> Table:
    """Tokens per second of each test."""
    shown = [
        *TEST_COLUMNS,
        *columns(format_count, tokens_per_s="tokens/s"),
        *columns(spread="std", range="min-max"),
        *columns(three, ratio="speedup"),
    ]
    first, weights = rows[0], ", ".join(dict.fromkeys(row["weights"] for row in rows))
    gpu = f"{machine['gpu']}, driver {machine['driver']}; " if machine["gpu"] else ""
    legend = [
        "pp: prefill, so many tokens of a prompt in one pass. tg: decode, so many tokens one at a time after "
        "the first. Tokens per second over all sequences.",
        *(["@ d: with so many tokens in the cache before."] if any(row["depth"] for row in rows) else []),
        *(["speedup: vs transformers as it runs by default."] if any(row["ratio"] for row in rows) else []),
        *(["Tiny forms, at toy widths, measure the code's overhead."] if any(row["tiny"] for row in rows) else []),
        f"{repetitions(rows)}, models taking turns; {first['dtype']}, batch {first['batch']}, {first['device']}, "
        f"weights {weights}.",
        f"{machine['cpu']}, {first['threads']} of {machine['cores']} cores, {' '.join(machine['isa'])}; "
        f"{gpu}torch {machine['torch']}, {machine['blas']}.",
        *([f"{summary}."] if (summary := kernel_summary(machine)) else []),
    ]
    return Table("Tokens per second, as measured", shown, legend, rows, derive=_speed)


def _speed(row: Row) -> Row:
    return {
        "by": by(row),
        "spread": f"{row['tokens_per_s_std'] / row['tokens_per_s']:.0%}",
        "range": min_max(row, "tokens_per_s", format_count),
    }


def by(row: Row) -> str:
    """The implementation and the mode; the zoo's eager mode is not named."""
    who, how = row["implementation"], row["mode"]
    return who if (who, how) == (ZOO, EAGER) else f"{who} {how}"


def repetitions(rows: Rows) -> str:
    """The number of repetitions and of warm-up rounds, as many as an interruption has left."""
    counted, warm = ({of(row) for row in rows} for of in (lambda row: len(row["seconds"]), lambda row: row["warmups"]))
    times = "One repetition" if counted == {1} else f"Medians of {_span(counted, 'repetition')}"
    if warm == {0}:
        return f"{times} of the warm-up, interrupted before any that counts"
    return f"{times} after {_span(warm, 'round')} of warm-up"


def _span(numbers: set[int], what: str) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low} {what}{'s' * (high != 1)}" if low == high else f"{low} to {high} {what}s"


def limits(rows: Rows, machine: Row) -> Table:
    """The share of the machine's ceilings that each speed reaches, and the peak memory."""
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
        "ceiling: tokens per second if only reading weights and cache once per pass, or the arithmetic, took time.",
        "MBU, MFU: % of the read bandwidth and of the arithmetic rate below. GEMMs: % of the speed of GEMMs alone, the "
        "pass's own products with weights, one after the other.",
        f"{word}: weights, and the peak of cache and passes beside them.",
        *([f"Experts hit per pass, mean over the layers with experts: {'; '.join(experts)}."] if experts else []),
        f"Harness overhead: at most {largest['overhead'] or 0:.2%} of the time ({named(largest)} {largest['test']}), "
        "measured as the same loop around a model that computes nothing.",
        *(f"{sign}: {meaning}" for sign, meaning in MEANINGS.items() if sign in used),
        *(["The size of the last cache is not known."] if machine["last_cache_bytes"] is None else []),
    ]
    return Table("What this machine would have allowed", shown, legend, rows, derive=_limit)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def _limit(row: Row) -> Row:
    gemms = row["gemms_tokens_per_s"]
    return {
        "by": by(row),
        "gemms": gemms and row["tokens_per_s"] / gemms,
        "signs": "".join(dict.fromkeys(SIGNS[mark] for mark in row["marks"])) or None,
    }


def machine_ceilings(rows: Rows) -> Table:
    """What the machine reaches, by kernel."""
    shown = columns(kind="ceiling", kernel="kernel", dtype="dtype", shown="median", range="min-max")
    size = next((row["amount"] for row in rows if row["kind"] == "bandwidth"), 0)
    short = ", limited by the free memory" if size < BUFFER_BYTES else ""
    legend = [
        f"The fastest of each kind counts. Reading: {format_bytes(size)} each time{short}. "
        "GB/s and GFLOPS are 10^9 per second.",
        "Measured in each round, in turns with the models.",
    ]
    return Table("Ceilings of this machine", shown, legend, rows, derive=_ceiling)


def _ceiling(row: Row) -> Row:
    word, show = "GB/s" if row["kind"] == "bandwidth" else "GFLOPS", three_in(1e9)
    return {"shown": f"{show(row['median'])} {word}", "range": f"{show(row['min'])}-{show(row['max'])}"}
