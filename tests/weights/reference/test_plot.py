"""--plot draws the error against position."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import weights
from weights.reference.report import write_plot
from zoo.cli.runner import exit_code

Saved = Callable[[str], Path]


def command(*args: object) -> int:
    app = runpy.run_module("weights.parity")["app"]
    return exit_code(app, "python -m weights.parity", list(map(str, args)))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_line_for_each_comparison(saved: Saved, tmp_path: Path, dtype: str) -> None:
    """Read from the SVG, in which text is text and curves have a point for each position."""
    import matplotlib

    report = weights.parity(saved("gemma3-270m"), tokens=40, dtype=dtype)
    file = tmp_path / "errors.svg"
    with matplotlib.rc_context({"svg.fonttype": "none", "path.simplify": False}):
        write_plot(report, file)
    drawn = file.read_text(encoding="utf-8")
    expected = ["zoo, float64", "zoo through a cache, float64", "window of 16", "bound in float64"]
    if dtype != "float64":
        expected += [f"zoo, {dtype}", f"zoo through a cache, {dtype}", f"reference, {dtype}"]
    assert all(f">{label}<" in drawn for label in expected)
    points = [len(re.findall("[ML] ", path)) for path in re.findall(r'<path d="([^"]*)"', drawn)]
    nonzero = [sum(position.largest > 0 for position in side.difference.by_position) for side in report.sides]
    assert max(points) == max(nonzero) > 30
    assert list(tmp_path.iterdir()) == [file]


def test_from_the_command_line(saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "errors.png"
    assert command(saved("llama3-8b"), "--tokens", 8, "--plot", file) == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    assert "PASS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("errors.jpg", 2, "must be a file that ends in .png or .svg"), ("nowhere/errors.png", 3, "there is no folder")],
)
def test_a_file_that_cannot_be(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, code: int, said: str
) -> None:
    """The error comes before anything is run."""
    assert command(saved("llama3-8b"), "--plot", tmp_path / name) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_without_the_package(saved: Saved, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved("llama3-8b")
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert command(folder, "--plot", "errors.png") == 3
    assert (
        capsys.readouterr().err
        == "error: this needs the package matplotlib; in the zoo's folder: pip install -e '.[plot]'\n"
    )
