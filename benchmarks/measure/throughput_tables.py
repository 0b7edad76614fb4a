"""Measured speed as tables: how fast, and what this machine would have allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.measure.ceilings import BUFFER
from benchmarks.measure.environment import kernel_summary
from benchmarks.measure.throughput import EAGER, ZOO
from benchmarks.measure.timing import MOST_SECONDS, MOST_WARMUPS
from benchmarks.output.report import Table, named
from benchmarks.output.show import three, unit
from zoo.cli.tables import Column
from zoo.units import format_bytes, format_count

Row = dict[str, Any]
Rows = Sequence[Row]

ABOVE = dict.fromkeys(("above_bandwidth", "above_matmul_rate", "above_own_matrices"), "!")
SIGNS = ABOVE | {"weights_in_cache": "c", "not_settled": "~", "warming_up": "w"}


def tables(rows: Rows, ceilings: Rows, machine: Row) -> Iterator[Table]:
    """Speeds, what holds them back, and the ceilings themselves; what was timed in one test stands together."""
    tests = list(dict.fromkeys(row["test"] for row in rows))
    rows = sorted(rows, key=lambda row: tests.index(row["test"]))
    yield speeds(rows, machine)
    if ceilings:
        yield limits(rows, machine)
        yield kernels(ceilings)


def speeds(rows: Rows, machine: Row) -> Table:
    """Tokens a second of each test."""
    columns = [
        Column("model", "model", width=13),
        Column("test", "test", width=13),
        Column("by", "by", width=12),
        Column("tokens_per_s", "tokens/s", format_count),
        Column("spread", "std"),
        Column("range", "min-max"),
        Column("ratio", "x peer", three),
    ]
    first = rows[0]
    legend = [
        "pp: tokens a second of a prompt of so many tokens, in one pass. tg: of so many decoded one at a time, after "
        "the first. Over all sequences.",
        *(["@ d: with so many tokens in the cache before."] if any(row["depth"] for row in rows) else []),
        *(["x peer: over the peer's speed as it runs by default."] if any(row["ratio"] for row in rows) else []),
        *(["Tiny forms, at toy widths, measure the code's overhead."] if any(row["tiny"] for row in rows) else []),
        f"{repetitions(rows)}, models taking turns; {first['dtype']}, batch {first['batch']}, "
        f"{first['device']}{_weights(rows)}.",
        f"{machine['cpu']}, {first['threads']} of {machine['cores']} cores, {' '.join(machine['isa'])}; "
        f"{_gpu(machine)}torch {machine['torch']}, {machine['blas']}.",
        *([f"{told}."] if (told := kernel_summary(machine)) else []),
    ]
    return Table("Tokens a second, as measured", columns, legend, rows, derive=_speed)


def repetitions(rows: Rows) -> str:
    """How often it was measured, and after what: as much of it as an interruption has left."""
    counted, warm = ({of(row) for row in rows} for of in (lambda row: len(row["seconds"]), lambda row: row["warmups"]))
    times = "One repetition" if counted == {1} else f"Medians of {_span(counted, 'repetition')}"
    if warm == {0}:
        return f"{times} of the warm-up, interrupted before any that counts"
    return f"{times} after {_span(warm, 'round')} of warm-up"


def _span(numbers: set[int], what: str) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low} {what}{'s' * (high != 1)}" if low == high else f"{low} to {high} {what}s"


def _weights(rows: Rows) -> str:
    named = dict.fromkeys(row["weights"] for row in rows)
    return f", weights {', '.join(named)}"


def _gpu(machine: Row) -> str:
    return f"{machine['gpu']}, driver {machine['driver']}; " if machine["gpu"] else ""


def by(row: Row) -> str:
    """Who ran it, and how; the zoo's eager mode goes without saying."""
    who, how = row["implementation"], row["mode"]
    return who if (who, how) == (ZOO, EAGER) else f"{who} {how}"


def _speed(row: Row) -> Row:
    speed = row["tokens_per_s"]
    return {
        "by": by(row),
        "spread": f"{row['tokens_per_s_std'] / speed:.0%}",
        "range": f"{format_count(row['tokens_per_s_min'])}-{format_count(row['tokens_per_s_max'])}",
    }


def limits(rows: Rows, machine: Row) -> Table:
    """What each speed was held back by: memory, arithmetic, or the code."""
    large = max(row["peak_bytes"] or 0 for row in rows) >= 2**30
    word, of, digits = ("GiB", 2**30, 2) if large else ("MiB", 2**20, 1)
    columns = [
        Column("model", "model", width=13),
        Column("test", "test", width=13),
        Column("by", "by", width=12),
        Column("ceiling_tokens_per_s", "ceiling", format_count),
        Column("mbu", "MBU", _percent),
        Column("mfu", "MFU", _percent),
        Column("own", "own", _percent),
        Column("peak_bytes", word, unit(of, digits)),
        Column("signs", ""),
    ]
    legend = [
        "ceiling: tokens a second if only reading weights and cache once a pass, or the arithmetic, took time.",
        "MBU, MFU: of the read bandwidth and of the arithmetic rate below. own: of the speed at which the products of "
        "the pass with its weights alone run, one after the other.",
        f"{word}: weights, and the most that cache and passes took beside them.",
        *_experts(rows),
        _overhead(rows),
        *_signs(rows),
        *(["How large the last cache is, nobody says."] if machine["last_cache_bytes"] is None else []),
    ]
    return Table("What this machine would have allowed", columns, legend, rows, derive=_limit)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def _limit(row: Row) -> Row:
    own = row["own_matrices_tokens_per_s"]
    return {
        "by": by(row),
        "own": own and row["tokens_per_s"] / own,
        "signs": "".join(dict.fromkeys(SIGNS[mark] for mark in row["marks"])) or None,
    }


def _experts(rows: Rows) -> list[str]:
    told = dict.fromkeys(
        f"{named(row)} {row['test']} {row['experts_hit']:.1f} ({row['experts_hit_predicted']:.1f} expected)"
        for row in rows
        if row["experts_hit"] is not None
    )
    return [f"Experts that a pass hits, of each layer with experts: {'; '.join(told)}."] if told else []


def _overhead(rows: Rows) -> str:
    largest = max(rows, key=lambda row: row["overhead"] or 0)
    return (
        f"Of the time taken, at most {largest['overhead'] or 0:.2%} ({named(largest)} {largest['test']}) is the "
        "harness's own: the same loop around a model that does nothing."
    )


def _signs(rows: Rows) -> list[str]:
    meanings = {
        "!": "above a ceiling: the machine was not the same all the time, or the figure is read from a cache.",
        "c": "the weights fit into the last cache, so the memory's bandwidth is no ceiling.",
        "w": "interrupted while it warmed up: nothing counts yet.",
        "~": f"not settled when the warm-up ended, after {MOST_WARMUPS} rounds or {MOST_SECONDS} s.",
    }
    used = {SIGNS[mark] for row in rows for mark in row["marks"]}
    return [f"{sign}: {meaning}" for sign, meaning in meanings.items() if sign in used]


def kernels(rows: Rows) -> Table:
    """What the machine can do, by kernel."""
    columns = [
        Column("kind", "ceiling"),
        Column("kernel", "kernel"),
        Column("dtype", "dtype"),
        Column("shown", "median"),
        Column("range", "min-max"),
    ]
    read = next((row["amount"] for row in rows if row["kind"] == "bandwidth"), 0)
    legend = [
        f"The fastest of each kind counts. Reading: {format_bytes(read)} each time{_short(read)}. "
        "GB/s and GFLOPS are 10^9 a second.",
        "Measured in each round, in turns with the models.",
    ]
    return Table("Ceilings of this machine", columns, legend, rows, derive=_kernel)


def _short(read: int) -> str:
    return ", for want of memory" if read < BUFFER else ""


def _kernel(row: Row) -> Row:
    word = "GB/s" if row["kind"] == "bandwidth" else "GFLOPS"
    show: Callable[[float], str] = lambda rate: three(rate / 1e9)  # noqa: E731
    return {"shown": f"{show(row['median'])} {word}", "range": f"{show(row['min'])}-{show(row['max'])}"}
