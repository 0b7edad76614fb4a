"""docs/performance.md: its table, from the measurements kept in docs/performance.json and performance-before.json.

python -m benchmarks.performance                    write the page anew
python -m benchmarks.performance FILE ...           first gather what these files of `throughput --json --out FILE` hold
python -m benchmarks.performance --before FILE ...  the same for files that an earlier version wrote, to compare with
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.show import three
from benchmarks.throughput import COMPILED, ZOO
from zoo.terminal import Column, Format, count, render

Row = dict[str, Any]
DOCS = Path(__file__).resolve().parents[1] / "docs"
KEPT, EARLIER, PAGE = DOCS / "performance.json", DOCS / "performance-before.json", DOCS / "performance.md"
BEGIN, END = "<!-- measured -->", "<!-- end -->"


def gather(files: Sequence[Path]) -> Row:
    """One document of several that were measured on the same machine: all their rows, under the first one's facts."""
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return documents[0] | {"rows": [row for document in documents for row in document["rows"]]}


def table(document: Row, earlier: Row) -> str:
    """A row for each model, dtype and test, as Markdown; of the earlier document how the zoo stood to transformers."""
    rows = [row for row in document["rows"] if row["table"] == "throughput"]
    before = {_test(row): row["ratio"] for row in earlier["rows"] if row["table"] == "throughput" and row["ratio"]}
    tests = dict.fromkeys(map(_test, rows))
    made = [_row([row for row in rows if _test(row) == test]) | {"before": before.get(test)} for test in tests]
    columns = [
        Column("model", "model"),
        Column("dtype", "dtype"),
        Column("test", "test"),
        Column("before", "before, x", three),
        Column("peer", "transformers", count),
        Column("eager", "zoo", count),
        Column("eager_ratio", "x", three),
        Column("compiled", "compiled", count),
        Column("compiled_ratio", "x", three),
        Column("most", "most x", three),
        Column("share", "MBU or own", lambda share: f"{share:.0%}"),
    ]
    return render(made, columns, Format.md)


def _test(row: Row) -> tuple[str, str, str]:
    return row["model"], row["dtype"], row["test"]


def _row(rows: Sequence[Row]) -> Row:
    """One test: transformers as it runs by default, the zoo in both modes, and what the machine would have allowed."""
    by_mode = {row["mode"]: row for row in rows if row["implementation"] == ZOO}
    peer = next((row for row in rows if row["implementation"] != ZOO), None)
    eager, compiled = by_mode.get("eager"), by_mode.get(COMPILED)
    best = compiled or eager
    assert best is not None
    limit = best["own_matrices_tokens_per_s"] or best["ceiling_tokens_per_s"]
    return {
        **{name: best[name] for name in ("model", "dtype", "test")},
        "peer": peer and peer["tokens_per_s"],
        "eager": eager and eager["tokens_per_s"],
        "eager_ratio": eager and eager["ratio"],
        "compiled": compiled and compiled["tokens_per_s"],
        "compiled_ratio": compiled and compiled["ratio"],
        "most": peer and limit / peer["tokens_per_s"],
        "share": best["tokens_per_s"] / limit,
    }


def page(text: str, document: Row, earlier: Row) -> str:
    """The page with its table as the documents say."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table(document, earlier)}\n\n{END}{rest.partition(END)[2]}"


def main(files: Sequence[str]) -> None:
    """Gather, if there is something to, and write."""
    into = KEPT
    if files[:1] == ["--before"]:
        into, files = EARLIER, files[1:]
    if files:
        into.write_text(json.dumps(gather([Path(file) for file in files]), indent=1) + "\n", encoding="utf-8")
    document, earlier = (json.loads(file.read_text(encoding="utf-8")) for file in (KEPT, EARLIER))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), document, earlier), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
