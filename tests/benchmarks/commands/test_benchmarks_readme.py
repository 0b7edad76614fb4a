"""The README shows today's figures, and its examples print what they say."""

from __future__ import annotations

import doctest
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

import zoo
from benchmarks.__main__ import app
from benchmarks.analytic.models import one
from benchmarks.commands import costs
from benchmarks.measure import throughput_tables
from benchmarks.measure.benchmark_models import BenchmarkModel
from tests.benchmarks.fakes import MACHINE, fake_rows
from zoo.cli.runner import exit_code

ROOT = Path(__file__).resolve().parents[3]


def test_the_tables_are_todays(capsys: pytest.CaptureFixture[str]) -> None:
    """Every line of the README's static tables is printed, blanks apart: a new, longer name may move the columns."""
    assert exit_code(app, "benchmarks", ["--static"]) == 0
    printed = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("```\n")[2].partition("Tokens per second")[0].splitlines()
    assert sum(line.startswith("llama3-8b ") for line in shown) == 2
    for line in shown:
        if not line.startswith("---"):
            assert " ".join(line.split()) in printed


def test_the_commands_run_and_print_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    """Those under "More tables", which measure nothing. Output that is shown is the beginning of what is printed."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## More tables")[2].partition("\n## ")[0]
    commands = re.findall(r"^    python -m benchmarks (.*?)(?: +#.*)?$", section, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        assert exit_code(app, "benchmarks", shlex.split(command)) == 0
    capsys.readouterr()
    ((command, shown),) = re.findall(r"```\n\$ python -m benchmarks (.*)\n((?:.*\n)*?)```", section)
    assert exit_code(app, "benchmarks", shlex.split(command)) == 0
    assert capsys.readouterr().out.startswith(shown)


def test_measured_tables_have_todays_columns_and_legends() -> None:
    """Their figures are those of another machine and another day."""
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    rows = fake_rows([BenchmarkModel(one("gemma3-270m"))])
    beside = [*rows, *(row | {"implementation": "transformers", "mode": "sdpa", "ratio": 1.0} for row in rows)]
    speeds, limits = (of(beside, MACHINE) for of in (throughput_tables.speeds, throughput_tables.limits))
    shown = [costs.tiny_throughput_table(rows), speeds, limits]
    for table in shown:  # what depends on the machine, or on what happened, is left out
        assert table.title in readme
        assert all(column.header in readme for column in table.columns)
        fixed = [
            line
            for line in table.legend
            if not re.search(r"Medians|threads|Harness|cores|^[~!c]:|GiB|MiB|is not known|^kernels", line)
        ]
        assert len(fixed) > 1
        assert all(line in readme for line in fixed)


def test_the_examples_print_what_they_say() -> None:
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert tried > 10
    assert failed == 0


def test_the_glossary_explains_fields_that_exist() -> None:
    """In its tables of specs, every word of the first column is a field."""
    known = {field.name for kind in zoo.Spec.kinds.values() for field in fields(kind)}
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    specs = glossary.partition("## What it costs")[0]
    words = {word for row in re.findall(r"^\| (`.*?) \|", specs, re.MULTILINE) for word in re.findall(r"`(\w+)`", row)}
    assert len(words) > 40
    assert words <= known
