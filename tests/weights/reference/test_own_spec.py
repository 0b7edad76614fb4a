"""A model that no reference describes is compared with its own spec."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

import weights
import zoo
from tests.models import randomised
from tests.swapped import INDESCRIBABLE
from zoo.cli.runner import exit_code
from zoo.errors import UsageError

APP = runpy.run_module("weights.parity")["app"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    spec, *_ = next(iter(INDESCRIBABLE.values()))
    weights.save(randomised(spec), tmp_path / "saved")
    return tmp_path / "saved"


def test_a_model_equals_its_spec(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = weights.parity(saved)
    assert isinstance(report, weights.SpecReport)
    assert report.passed
    assert 0 < report.decoded["largest_difference"] <= report.decoded["bound"]
    assert exit_code(APP, "weights.parity", [str(saved)]) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("equal to its spec")
    assert max(map(len, printed.splitlines()[1:])) <= 80  # the first is the name
    assert exit_code(APP, "weights.parity", [str(saved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_a_difference_from_the_spec_is_exit_code_1(saved: Path, capsys, monkeypatch) -> None:
    kv_bytes = zoo.Decoder.kv_bytes
    monkeypatch.setattr(zoo.Decoder, "kv_bytes", lambda *args, **options: kv_bytes(*args, **options) + 1)
    assert exit_code(APP, "weights.parity", [str(saved)]) == 1
    assert "NOT equal to its spec: the cache has" in capsys.readouterr().out


def test_what_needs_a_reference_is_refused(saved: Path, tmp_path: Path, capsys) -> None:
    assert exit_code(APP, "weights.parity", [str(saved), "--plot", str(tmp_path / "plot.svg")]) == 2
    assert "has none" in capsys.readouterr().err
    with pytest.raises(UsageError, match="has no weights"):
        weights.load("mine.py:small")
