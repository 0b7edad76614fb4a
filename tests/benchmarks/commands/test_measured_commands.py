"""The verbs that measure single blocks, end to end at small sizes and under a clock of their own: every format."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import app
from benchmarks.measure import blocks, timing, variants
from tests.benchmarks.schema import validate
from zoo.cli.runner import exit_code

MLA = ["blocks", "--variants", "mla", "--tiny"]
CALLS = {
    "mla": [*MLA, "--context", "1k", "--context", "5", "--repeat", "5"],
    "mla, swapped": [*MLA, "--context", "40", "--dtype", "bf16", "--swap", "MLA(q_rank=none)"],
    "sparse": ["blocks", "--variants", "sparse", "--tiny", "--context", "40", "--prefill", "--repeat", "1"],
    "blocks": ["blocks", "--dim", "256", "--tokens", "8", "--context", "600", "--repeat", "1"],
}


@pytest.fixture(params=CALLS, ids=str)
def call(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run one verb with more arguments -> what it prints. Every run it times takes one millisecond."""
    ticks, measure = count(), timing.measure
    for module in (variants, blocks):
        clock = {"clock": lambda: next(ticks) / 1000}
        monkeypatch.setattr(module, "measure", lambda *a, clock=clock, **k: measure(*a, **k | clock))

    def run(*more: str) -> str:
        assert exit_code(app, "python -m benchmarks", [*CALLS[request.param], *more]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


def stable(value: Any) -> Any:
    """Without the noise of the clock's binary fractions."""
    if isinstance(value, dict):
        return {key: stable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [stable(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def test_tables_fit_80_columns_and_say_how_they_were_measured(call: Callable[..., str]) -> None:
    out = call()
    assert max(map(len, out.splitlines())) <= 80
    assert "Medians of " in out
    assert re.search(r"^kernels\b.*: ", out, re.MULTILINE)
    assert " taking turns" in " ".join(out.split()) or " take turns" in " ".join(out.split())


def test_markdown_tables_have_equal_rows(call: Callable[..., str]) -> None:
    found = [block for block in call("--format", "md").split("\n\n") if block.startswith("|")]
    assert len(found) == 2
    for block in found:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_json_jsonl_and_csv_hold_the_same_rows_by_the_schema(call: Callable[..., str], tmp_path: Path) -> None:
    """JSON in a file, beside which nothing is printed, and the others on stdout."""
    assert call("--json", "--out", str(tmp_path / "out.json")) == ""
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    validate(document)
    assert document["complete"] is True
    assert {"isa", "kernels", "kernels_set"} <= document["machine"].keys()
    head, *rows = map(json.loads, call("--format", "jsonl").splitlines())
    assert head["complete"] is True
    assert stable(rows) == stable(document["rows"])
    written = list(csv.DictReader(io.StringIO(call("--format", "csv"))))
    names = [row.get("block") or row["variant"] for row in document["rows"]]
    assert [row.get("block") or row["variant"] for row in written] == names
    assert all(float(row.get("decode_s") or row["attention_s"]) == pytest.approx(0.001) for row in written)
