"""docs/learning.md: every comparison is shown, all on one text, and its command makes the models in its table."""

from __future__ import annotations

import re
import shlex

import pytest

from benchmarks.commands.learn import Match, ModelOptions
from benchmarks.output.report import DOCS, kept, read

DOCUMENTS = {name: read(file) for name, file in kept(DOCS / "learning").items()}
TEXT = (DOCS / "learning.md").read_text(encoding="utf-8")


def models(name: str) -> list[dict]:
    return [row for row in DOCUMENTS[name]["rows"] if row["table"] == "learn"]


def test_every_comparison_has_all_of_its_seeds_and_is_of_one_text() -> None:
    shown = [row for name in DOCUMENTS for row in models(name)]
    assert len({row["data_hash"] for row in shown}) == 1
    for row in shown:
        assert len({run["seed"] for run in row["runs"]}) == row["seeds"] >= 3


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_command_on_the_page_makes_the_small_forms_of_its_table(name: str) -> None:
    """If the scaling rule had changed since, the table would show models that no command makes."""
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
