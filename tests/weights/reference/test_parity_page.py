"""docs/parity.md shows the output of its commands, apart from digits."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

import weights
from zoo.cli.runner import exit_code
from zoo.core.float32 import BOUND

PAGE = (Path(__file__).parents[3] / "docs" / "parity.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```console\n\$ (.*?)\n(.*?)```", PAGE, re.DOTALL)
MADE, USED = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def words(text: str) -> str:
    """Text without what differs between machines: versions, and the digits of errors, which may be zero."""
    text = re.sub(r"\d\.\de[+-]\d\d\b|\b0(?=\s|,)|\b\d+(\.\d+)?%", "N", " ".join(text.split()))
    text = re.sub(r"most in (layer \d+'s [a-z-]+|the [a-z]+)", "most in it", text)
    return re.sub(r"-{3,}", "", re.sub(r"transformers \S+,", "transformers,", text)).replace("  ", " ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(MADE, {})
    return folder


def test_three_reports_are_shown() -> None:
    assert [re.search("^(PASS|FAIL)", shown, re.MULTILINE)[1] for _, shown in SHOWN] == ["PASS", "FAIL", "PASS"]


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=[command for command, _ in SHOWN])
def test_the_report_shown_is_the_report(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, shown: str
) -> None:
    monkeypatch.chdir(folder)
    python, m, module, *args = shlex.split(command)
    assert (python, m, module) == ("python", "-m", "weights.parity")
    code = exit_code(runpy.run_module(module)["app"], "python -m weights.parity", args)
    assert code == ("FAIL" in shown)
    assert words(capsys.readouterr().out) == words(shown)


def test_the_example_in_python(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    exec(USED, {"weights": weights})
    assert "PASS" in capsys.readouterr().out


def test_the_bound_is_as_said() -> None:
    assert f"{BOUND:.0e}" == "1e-10"
    assert "1e-10 of the largest element" in PAGE
