"""The bar appears on a terminal if the work takes long, and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from benchmarks.output import progress as module
from benchmarks.output.progress import progress


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress("building") as bar:
        bar.doing("measuring")
        bar.expect(4)
        for _ in range(2):
            bar.tick()
        bar.expect(8)
        for _ in range(6):
            bar.tick()
    return stderr.getvalue()


def test_the_bar_says_what_is_done_and_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELAY", 0)
    monkeypatch.setattr(module, "MIN_INTERVAL", 0)
    text = shown(Terminal(), monkeypatch)
    assert "measuring:" in text
    assert " 2/4 " in text
    assert " 8/8 " in text
    assert text.endswith("\r")  # and it goes


def test_a_quick_measurement_or_a_file_has_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(Terminal(), monkeypatch).strip() == ""
    monkeypatch.setattr(module, "DELAY", 0)
    assert shown(io.StringIO(), monkeypatch) == ""
