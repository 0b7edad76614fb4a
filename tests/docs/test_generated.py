"""The generated files of docs/ equal the committed ones, and the schema accepts the committed documents and no wrong
ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from benchmarks.output.report import DOCS, kept, read
from docs.tools import schema
from docs.tools.__main__ import main
from docs.tools.pages import filled, texts
from tests.benchmarks.schema import validate
from zoo.errors import MalformedError, NotAvailable

SCHEMA = schema.schema()
FOLDERS = ("performance", "performance/blocks", "learning")
DOCUMENTS = {f"{folder}/{name}": read(file) for folder in FOLDERS for name, file in kept(DOCS / folder).items()}


def test_every_generated_file_is_committed() -> None:
    found = texts()
    drawings = {f"blocks/{file.name}" for file in (DOCS / "blocks").iterdir()}
    assert drawings == {name for name in found if name.startswith("blocks/")}
    for name, text in found.items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, f"run python -m docs.tools: {name}"


def test_committed_documents_are_complete_and_follow_the_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    for name, document in DOCUMENTS.items():
        validate(document)
        assert document["complete"], name


def test_a_wrong_row_is_refused() -> None:
    """A row that lacks a column, has another one, or a column with a value of another type."""
    validator = Draft202012Validator({**SCHEMA["$defs"]["row"], "$defs": SCHEMA["$defs"]})
    tables = {row["table"]: row for row in reversed([*schema.examples()])}  # the first row of each
    assert tables.keys() == schema.TITLES.keys()
    for table, row in tables.items():
        properties = SCHEMA["$defs"][table]["properties"]
        assert not validator.is_valid(row | {"another": 1}), table
        for column in row:
            assert not validator.is_valid({key: value for key, value in row.items() if key != column}), column
            assert not validator.is_valid(row | {column: {"an": "object"}}), (table, column)
            if properties[column].get("type") in ("integer", "number") and column != "mean":
                assert column in ("value", "low", "high") or not validator.is_valid(row | {column: -1.5}), column


def test_sections_are_written_added_and_removed_and_prose_stays() -> None:
    page = "top\n\n<!-- measured: a -->\nold\n<!-- end -->\n\nprose\n"
    assert filled(page, {"a": "new"}) == "top\n\n<!-- measured: a -->\nnew\n\n<!-- end -->\n\nprose\n"
    both = filled(page, {"a": "new", "b": "more"})
    assert both.index("new") < both.index("<!-- measured: b -->\nmore") < both.index("prose")
    assert filled(both, {"b": "more"}).count("<!--") == 2
    assert filled("top\n", {"a": "new"}).endswith("<!-- measured: a -->\nnew\n\n<!-- end -->\n")


@pytest.mark.parametrize("arguments", [["x.json"], ["--processor", "a"]])
def test_files_are_kept_for_a_processor(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "go together" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--processor", "../a", "x.json"], 2, "lower-case words"),
        (["--processor", "a-1", "nowhere.json"], 3, "cannot read nowhere.json: No such file or directory"),
    ],
)
def test_a_bad_call_is_one_line_and_its_code(
    arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    err = capsys.readouterr().err
    assert told in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot read"),
        ("", "not a document of python -m benchmarks throughput --json"),
        ("[]", "not a document"),
        ('{"schema_version": 2, "machine": {}, "rows": [1]}', "not a document"),
        ('{"schema_version": 2, "machine": 1, "rows": []}', "not a document"),
        ('{"schema_version": 1, "machine": {}, "rows": []}', "written by an older version"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(text: str | None, told: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(NotAvailable if text is None else MalformedError, match=told):
        read(file)
