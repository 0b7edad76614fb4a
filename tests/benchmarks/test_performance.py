"""The page of measured speeds: its table is what the kept document says, and the commands on it exist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from benchmarks import performance
from benchmarks.performance import DOCS, EARLIER, KEPT, PAGE, gather, page, table


def document(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_page_shows_the_kept_documents() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text, document(KEPT), document(EARLIER)) == text, "run python -m benchmarks.performance"


@pytest.mark.parametrize("file", [KEPT, EARLIER], ids=lambda file: file.name)
def test_the_kept_documents_follow_the_schema(file: Path) -> None:
    Draft202012Validator(document(DOCS / "benchmarks.schema.json")).validate(document(file))


def test_documents_are_gathered_under_the_first_one(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.json" for n in range(2)]
    for n, file in enumerate(files):
        file.write_text(json.dumps({"machine": f"m{n}", "rows": [n, n + 10]}), encoding="utf-8")
    assert gather(files) == {"machine": "m0", "rows": [0, 10, 1, 11]}


def speed(implementation: str, mode: str, rate: float, **more: object) -> dict:
    row = {"table": "throughput", "model": "m", "dtype": "float32", "test": "tg8", "own_matrices_tokens_per_s": None}
    row |= {"implementation": implementation, "mode": mode, "tokens_per_s": rate, "ceiling_tokens_per_s": 40.0}
    return row | {"mbu": rate / 40, "ratio": None} | more


def test_a_row_says_what_was_reached_and_what_could_have_been() -> None:
    rows = [
        speed("zoo", "eager", 10.0, ratio=1.0),
        speed("zoo", "compiled", 30.0, ratio=3.0),
        speed("transformers", "sdpa", 10.0),
        speed("zoo", "eager", 90.0, test="pp8", own_matrices_tokens_per_s=100.0),
    ]
    earlier = [speed("zoo", "eager", 8.0, ratio=0.7), speed("transformers", "sdpa", 11.0)]
    lines = table({"rows": rows}, {"rows": earlier}).splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        *("m", "float32", "tg8", "0.700", "10", "10", "1.00", "30", "3.00", "4.00", "75%")
    ]
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == [
        *("m", "float32", "pp8", "", "", "90", "", "", "", "", "90%")
    ]


def test_writing_gathers_first_where_files_are_named(tmp_path: Path, monkeypatch) -> None:
    shown, measured = tmp_path / "page.md", tmp_path / "one.json"
    monkeypatch.setattr(performance, "KEPT", tmp_path / "kept.json")
    monkeypatch.setattr(performance, "EARLIER", tmp_path / "earlier.json")
    monkeypatch.setattr(performance, "PAGE", shown)
    shown.write_text("before\n<!-- measured -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    performance.KEPT.write_text('{"rows": []}', encoding="utf-8")
    measured.write_text(json.dumps({"rows": [speed("zoo", "eager", 5.0, ratio=0.8)]}), encoding="utf-8")
    performance.main(["--before", str(measured)])
    measured.write_text(json.dumps({"rows": [speed("zoo", "eager", 20.0)]}), encoding="utf-8")
    performance.main([str(measured)])
    text = shown.read_text(encoding="utf-8")
    assert "50%" in text
    assert "0.8" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\nafter\n")
