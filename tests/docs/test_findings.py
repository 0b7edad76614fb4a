"""docs/learning.md: its tables are those of the committed comparisons, which follow the schema and share one text."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from jsonschema import Draft202012Validator

from benchmarks.commands.learn import Match, ModelOptions
from benchmarks.findings import PAGE, documents, page, section

DOCUMENTS = documents()
TEXT = PAGE.read_text(encoding="utf-8")
SCHEMA = json.loads((PAGE.parent / "benchmarks.schema.json").read_text(encoding="utf-8"))


def models(name: str) -> list[dict]:
    return [row for row in DOCUMENTS[name]["rows"] if row["table"] == "learn"]


def test_the_page_is_that_of_the_comparisons_and_shows_each() -> None:
    assert page(TEXT, DOCUMENTS) == TEXT
    shown = re.findall(r"<!-- measured: ([\w-]+) -->", TEXT)
    assert sorted(shown) == sorted(DOCUMENTS)
    assert all(f"learning/{name}.json" in section(name, DOCUMENTS[name]) for name in shown)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_comparison_is_whole_and_follows_the_schema(name: str) -> None:
    document = DOCUMENTS[name]
    assert [str(error) for error in Draft202012Validator(SCHEMA).iter_errors(document)] == []
    assert document["complete"] is True
    for row in models(name):
        assert len({run["seed"] for run in row["runs"]}) == row["seeds"] >= 3


def test_all_comparisons_are_of_one_text() -> None:
    assert len({row["data_hash"] for name in DOCUMENTS for row in models(name)}) == 1


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_command_on_the_page_makes_the_small_forms_of_its_table(name: str) -> None:
    """A rule that scales models otherwise today would leave figures of models that no command makes."""
    before = TEXT.partition(f"<!-- measured: {name} -->")[0]
    (*_, command) = re.findall(
        r"^    python -m benchmarks (learn.*?)$", before.replace("\\\n        ", ""), re.MULTILINE
    )
    words = shlex.split(command, comments=True)[1:]
    options, names = dict[str, list[str]](), list[str]()
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            options.setdefault(word, []).append(words.pop(0))
        else:
            names.append(word)
    match = Match(options.get("--match", ["params"])[-1])
    entries = ModelOptions(names or None, options.get("--swap"), match=match).entries(quick=False)
    rows = models(name)
    assert [entry.label for entry in entries] == [" ".join(filter(None, (r["model"], r["swap"]))) for r in rows]
    assert [entry.spec.params() for entry in entries] == [row["params"] for row in rows]
    assert [entry.spec.active_params() for entry in entries] == [row["active_params"] for row in rows]
