"""Exit codes and errors, tables and documents, units, free memory."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from typing import Annotated, Any

import pytest
import torch
import typer
from tabulate import MIN_PADDING

from zoo.cli import runner, tables
from zoo.cli.runner import Debug, emit, exit_code
from zoo.cli.tables import Column, Format, document, render
from zoo.core import devices, processes
from zoo.core.devices import free_memory, machine
from zoo.errors import CheckFailed, MalformedError, NotAvailable, UsageError
from zoo.units import format_bytes, format_count

ERRORS = {
    "check": CheckFailed("two figures\n  differ"),
    "usage": UsageError("no such thing"),
    "absent": NotAvailable("no network"),
    "malformed": MalformedError("bad file"),
    "interrupted": KeyboardInterrupt(),
    "abort": typer.Abort(),
    "defect": ZeroDivisionError("oops"),
}
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    what: str, times: Annotated[int, typer.Option(min=1)] = 1, format: Format = Format.table, debug: Debug = False
) -> int | None:
    """Do something."""
    if what in ERRORS:
        raise ERRORS[what]
    print(what * times)
    return 7 if what == "seven" else None


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["check"], 1, "error: two figures differ"),
        (["usage"], 2, "error: no such thing"),
        (["absent"], 3, "error: no network"),
        (["malformed"], 4, "error: bad file"),
        (["interrupted"], 130, "error: interrupted"),
        (["abort"], 130, "error: interrupted"),
        (["defect"], 1, "error: unexpected ZeroDivisionError: oops; --debug shows where"),
        ([], 2, "error: missing argument"),
        (["x", "y"], 2, "error: got unexpected extra argument(s) (y) (see prog --help)"),
        (["x", "--times", "0"], 2, "error: invalid value for '--times'"),
        (["x", "--format", "xml"], 2, "error: invalid value for '--format': 'xml' is not one of"),
        (["x", "--tims", "2"], 2, "error: no such option: --tims"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(capsys, args, code, says) -> None:
    assert exit_code(app, "prog", args) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(says)
    assert err.count("\n") == 1


def test_a_process_that_may_not_report_an_error_only_exits(capsys, monkeypatch) -> None:
    monkeypatch.setattr(processes, "may_report_error", lambda: False)
    assert exit_code(app, "prog", ["malformed"]) == 4
    assert capsys.readouterr() == ("", "")


def test_debug_shows_the_traceback(capsys) -> None:
    assert exit_code(app, "prog", ["defect", "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("oops; --debug shows where\n")


def test_success(capsys) -> None:
    assert exit_code(app, "prog", ["ab", "--times", "2"]) == 0
    assert exit_code(app, "prog", ["seven"]) == 7
    assert exit_code(app, "prog", ["--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("abab\nseven\nUsage: prog ")
    assert err == ""


def test_run_exits() -> None:
    with pytest.raises(SystemExit) as caught:
        runner.run(app, "prog", ["usage"])
    assert caught.value.code == 2


def test_a_character_that_the_encoding_lacks_is_replaced(monkeypatch) -> None:
    """This holds on stdout and on stderr."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setitem(ERRORS, "2 × 3", UsageError("not 2 × 3"))
    assert [exit_of("2 × 4"), exit_of("2 × 3")] == [0, 2]
    err.flush()
    assert (out.buffer.getvalue(), err.buffer.getvalue()) == (b"2 ? 4\n", b"error: not 2 ? 3\n")


def exit_of(*args: str) -> Any:
    with pytest.raises(SystemExit) as caught:
        runner.run(app, "prog", args)
    return caught.value.code


def test_a_closed_pipe_is_no_error(monkeypatch) -> None:
    """The command may notice it while it prints or at its end. Python's own flush afterwards must not fail."""
    for times in ("1", "100000"):
        reader, writer = os.pipe()
        os.close(reader)
        with monkeypatch.context() as patch, os.fdopen(writer, "w") as stream:
            patch.setattr(sys, "stdout", stream)
            assert exit_code(app, "prog", ["ab", "--times", times]) == 0


ROWS = [
    {"name": "one", "params": 1234, "rate": 0.5, "note": None, "more": [1, 2]},
    {"name": "two, or 2", "params": 5_678_000, "rate": float("nan"), "note": "x", "more": []},
]
COLUMNS = [
    Column("name", "model"),
    Column("params", "parameters", format_count),
    Column("rate", "rate"),
    Column("note", "note"),
]
TABLE = """\
model      parameters  rate  note
---------  ----------  ----  ----
one             1.23k   0.5
two, or 2       5.68M   nan  x"""


def test_a_table() -> None:
    assert [line.rstrip() for line in render(ROWS, COLUMNS).splitlines()] == TABLE.splitlines()


def test_markdown() -> None:
    lines = render(ROWS, COLUMNS, Format.md).splitlines()
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == ["two, or 2", "5.68M", "nan", "x"]
    assert set(lines[1]) <= set("|-:")


def test_csv_holds_raw_values() -> None:
    read = list(csv.DictReader(io.StringIO(render(ROWS, COLUMNS, Format.csv))))
    assert read[0] == {"name": "one", "params": "1234", "rate": "0.5", "note": ""}
    assert read[1]["name"] == "two, or 2"


def test_json_has_version_and_machine_and_no_nan() -> None:
    read = json.loads(render(ROWS, COLUMNS, Format.json, {"seed": 3}), parse_constant=pytest.fail)
    assert read == {
        "schema_version": tables.SCHEMA_VERSION,
        "machine": machine(),
        "seed": 3,
        "rows": [ROWS[0], ROWS[1] | {"rate": None}],
    }
    head, *rows = (json.loads(line) for line in render(ROWS, COLUMNS, Format.jsonl, {"seed": 3}).splitlines())
    assert head == {key: value for key, value in read.items() if key != "rows"}
    assert rows == read["rows"]
    assert json.loads(document({"a": (1, float("inf"))}))["a"] == [1, None]


def test_no_rows() -> None:
    for format in Format:
        assert render([], COLUMNS, format)


def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path, capsys) -> None:
    out = tmp_path / "table.txt"
    emit(render(ROWS, COLUMNS), out)
    assert out.read_text() == render(ROWS, COLUMNS) + "\n"
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(NotAvailable, match="folder cannot be written: Is a directory"):
        emit("x", folder)
    assert {path.name for path in tmp_path.iterdir()} == {"table.txt", "folder"}
    assert capsys.readouterr().out == ""
    emit("x")
    assert capsys.readouterr().out == "x\n"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1234, "1.23k"),
        (268_098_176, "268M"),
        (8_030_261_248, "8.03B"),
        (671_026_419_200, "671B"),
        (1.5e12, "1.50T"),
    ],
)
def test_format_count(number, text) -> None:
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (384, "384 B"),
        (1024, "1 KiB"),
        (70_272, "68.6 KiB"),
        (416 * 2**20, "416 MiB"),
        (10.4 * 2**30, "10.4 GiB"),
        (3 * 2**40, "3 TiB"),
    ],
)
def test_format_bytes(nbytes, text) -> None:
    assert format_bytes(nbytes) == text


def test_free_memory(monkeypatch) -> None:
    free = free_memory(torch.device("cpu"))
    assert free is not None
    assert 0 < free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert free_memory(torch.device("meta")) is None
    monkeypatch.setattr(devices, "_free_in_group", lambda: iter([1000, -5]))
    assert free_memory(torch.device("cpu")) == -5


def test_a_containers_limit_counts(tmp_path, monkeypatch) -> None:
    files = {"memory.max": "5000\n", "memory.current": "3000\n", "memory.stat": "anon 2000\ninactive_file 500\n"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    real = devices.Path
    here = {"/sys/fs/cgroup": str(tmp_path), "/sys/fs/cgroup/memory": str(tmp_path / "none")}
    monkeypatch.setattr(devices, "Path", lambda first, *rest: real(here.get(first, first), *rest))
    assert list(devices._free_in_group()) == [2500]
    (tmp_path / "memory.max").write_text("max\n")
    assert list(devices._free_in_group()) == []


def test_a_column_with_a_width_is_wrapped_in_plain_tables_only() -> None:
    rows = [{"a": "one two three four", "b": "x"}]
    columns = [Column("a", "a", width=9), Column("b", "b")]
    assert render(rows, columns).splitlines()[2:] == ["one two  x", "three", "four"]
    assert "one two three four" in render(rows, columns, Format.md)
    assert "one two three four" in render(rows, columns, Format.csv)


def test_a_long_name_is_broken_at_its_hyphens() -> None:
    rendered = render([{"a": "deepseek-v3-671b"}], [Column("a", "a", width=13)])
    assert rendered.splitlines()[2:] == ["deepseek-v3-", "671b"]


@pytest.mark.parametrize("rows", [[], [{"a": 1}]])
def test_headers_are_not_padded(rows) -> None:
    assert render(rows, [Column("a", "header"), Column("b", "b")]).splitlines()[:2] == ["header  b", "------  -"]
    assert MIN_PADDING == 2  # tabulate's own default, for other users of it in the process
