"""Tables fit a terminal and explain their columns, and every format parses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import zoo
from benchmarks.analytic.models import chosen, one
from benchmarks.analytic.params import cost_row
from benchmarks.commands import costs
from benchmarks.measure.benchmark_models import BenchmarkModel
from benchmarks.output.report import Report, Table
from tests.benchmarks.fakes import fake_rows
from zoo.cli.tables import Column, Format
from zoo.errors import NotAvailable

COSTS = [cost_row(model) for model in chosen([])]
LLAMAS = [cost_row(model) for model in chosen(["llama3"])]
SPEEDS = fake_rows(
    [BenchmarkModel(replace(one(name), spec=zoo.spec(name, tiny=True)), tiny=True) for name in zoo.names()]
)
TABLES = [costs.parameter_table(COSTS), costs.kv_table(COSTS), costs.tiny_throughput_table(SPEEDS)]


def written(format: Format, folder: Path) -> str:
    report = Report(format, out=folder / "out")
    report.add(*TABLES)
    report.about["complete"] = True
    report.finish()
    return (folder / "out").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_a_table_fits_80_columns_and_its_legend_tells_every_header(table: Table) -> None:
    text = table.text(Format.table)
    assert max(map(len, text.splitlines())) <= 80
    legend = " ".join(table.legend)
    for header in {column.header.replace("\n", " ") for column in table.columns} - {
        "model",
        "tiny model",
        "released",
        "layers",
        "min-max",
    }:
        assert header in legend, header


def test_a_table_that_is_too_wide_wraps_its_longest_names() -> None:
    name = "-".join(["a-long-name"] * 8)
    text = Table("Title", [Column("model", "model"), Column("n", "n")], [], [{"model": name, "n": 1}]).text(
        Format.table
    )
    first, second = text.splitlines()[4:6]
    assert 60 < len(first) <= 80
    assert first.endswith("-  1")
    assert first.split()[0] + second == name


def test_tables_in_a_file_are_the_tables_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report.add(*TABLES)
    report.finish()
    assert capsys.readouterr().out == written(Format.table, tmp_path)


def test_an_empty_column_is_left_out() -> None:
    assert "published" not in costs.parameter_table(LLAMAS).text(Format.table)
    assert "bounded" not in costs.kv_table(LLAMAS).text(Format.table).split("\n\n")[1]


def test_what_is_not_certain_is_a_line_below_the_table() -> None:
    noted = [row | {"note": "config from class defaults" if row["layers"] == 32 else None} for row in LLAMAS]
    (line,) = [each for each in costs.parameter_table(noted).legend if each.startswith("Not certain: ")]
    assert line == "Not certain: llama3-8b, llama3.1-8b: config from class defaults."
    assert "Not certain" not in costs.parameter_table(LLAMAS).text(Format.table)


def test_windows_of_several_sizes_are_listed() -> None:
    row: dict[str, Any] = COSTS[0] | {"windows": [{"layers": 3, "tokens": 512}, {"layers": 2, "tokens": 4096}]}
    assert "3 x 512 + 2 x 4,096" in costs.kv_table([row]).text(Format.table)


def test_derived_cells_are_shown_and_not_written(tmp_path: Path) -> None:
    table = Table("t", [Column("sum", "sum")], [], [{"a": 1, "b": 2}], derive=lambda row: {"sum": row["a"] + row["b"]})
    assert "3" in table.text(Format.table)
    report = Report(Format.json, out=tmp_path / "out")
    report.add(table)
    report.finish()
    assert json.loads((tmp_path / "out").read_text())["rows"] == [{"a": 1, "b": 2}]


def test_a_file_in_no_folder_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="no folder"):
        Report(Format.json, out=tmp_path / "missing" / "out")
