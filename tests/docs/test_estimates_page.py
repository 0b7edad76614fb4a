"""docs/estimates.md: the output shown for its config is the output."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.__main__ import app
from benchmarks.output.report import DOCS
from zoo.cli.runner import exit_code

PAGE = (DOCS / "estimates.md").read_text(encoding="utf-8")


def test_the_output_shown_is_that_of_the_config_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0]
    Path("new-model").mkdir()
    Path("new-model", "config.json").write_text(config, encoding="utf-8")
    command, shown = re.findall(r"```console\n\$ python -m benchmarks (.*?)\n(.*?)```", PAGE, re.DOTALL)[0]
    assert exit_code(app, "python -m benchmarks", command.split()) == 0
    assert capsys.readouterr().out == shown
