"""The examples of docs/saving.md run as shown."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "saving.md"


def test_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = doctest.testfile(str(PAGE), module_relative=False)
    assert done.attempted >= 7
    assert done.failed == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experts", "windows"]
