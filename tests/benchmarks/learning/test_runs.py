"""Stored runs are found by everything that determines their figures, and a stored file is never partial."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import zoo
from benchmarks.learning import runs
from benchmarks.learning.runs import TEXT, Outcome, Point, Run, RunStore
from zoo.errors import MalformedError, NotAvailable

RUN = Run(zoo.spec("llama3", tiny=True), TEXT, 4e-3, 0, 10, 2, 16, data="abc")
OUTCOME = Outcome({"bits_per_byte": 2.5}, (Point(32, 640, 0.5, 3.0), Point(320, 6400, 5.0, 2.5)), 320, 5.0)
CHANGES = {
    "spec": zoo.spec("qwen3", tiny=True),
    "task": "recall",
    "learning_rate": 8e-3,
    "seed": 1,
    "steps": 11,
    "batch": 3,
    "context": 17,
    "data": "abd",
    "split": "tuning",
    "code": "other",
}


def test_a_kept_run_comes_back_as_it_was(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "new" / "folder")
    assert store.load(RUN) is None
    store.save(RUN, OUTCOME)
    assert store.load(RUN) == OUTCOME
    assert [path.name for path in store.folder.iterdir()] == [f"{RUN.name}.json"]  # and no part of another


@pytest.mark.parametrize("field", CHANGES)
def test_a_run_that_differs_in_anything_is_another_run(field: str, tmp_path: Path) -> None:
    assert CHANGES.keys() == Run.__dataclass_fields__.keys()
    store, other = RunStore(tmp_path), replace(RUN, **{field: CHANGES[field]})
    store.save(RUN, OUTCOME)
    assert other.name != RUN.name
    assert store.load(other) is None
    assert store.missing([other, RUN, other]) == [other]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1, "key": {}, "outcome": {}}', '{"schema": 99}'])
def test_a_file_that_is_no_kept_run_is_named(text: str, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.path(RUN).write_text(text, encoding="utf-8")
    with pytest.raises(MalformedError, match=r"is not a kept run .* delete it"):
        store.load(RUN)


def test_a_file_of_another_run_is_refused(tmp_path: Path) -> None:
    store, other = RunStore(tmp_path), replace(RUN, seed=7)
    store.save(other, OUTCOME)
    store.path(other).rename(store.path(RUN))
    with pytest.raises(MalformedError, match="it holds another run"):
        store.load(RUN)


def test_a_folder_that_cannot_be_made_is_not_available(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(NotAvailable, match="--runs"):
        RunStore(tmp_path / "file" / "below")


def test_the_hash_of_the_code_follows_from_the_files_that_decide_figures() -> None:
    assert all((runs.ROOT / each).exists() for each in runs.CODE)
    assert RUN.code == runs.code_hash()
