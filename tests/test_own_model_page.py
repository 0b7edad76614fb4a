"""docs/own-model.md runs from top to bottom, starting with an empty folder."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "own-model.md"
TEXT = PAGE.read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = re.findall(r"^\$ (.*)$", TEXT, re.MULTILINE)


def run(folder: Path, command: str) -> str:
    """Returns the stdout of a command of the page, run in the folder with this environment's packages."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("budget", ["--tokens 8k", pytest.param("--minutes 1", marks=pytest.mark.slow)])
def test_the_page_runs(tmp_path: Path, budget: str) -> None:
    for name, body in FILES.items():
        (tmp_path / name).write_text(body, encoding="utf-8")
    printed = {}
    for command in COMMANDS:
        text = f" --text {ROOT / 'docs'}" if "zoo.train" in command and budget != "--minutes 1" else ""
        printed[command] = run(tmp_path, command.replace("--minutes 1", budget) + text)
    run(tmp_path, "python -m pytest -q -p no:cacheprovider -n 0 test_mine.py")
    assert sum("as the formula" in " ".join(out.split()) for out in printed.values()) >= 2
    assert "\\begin{tabular}" in printed[COMMANDS[-1]]
    assert (tmp_path / "run" / "model" / "spec.json").is_file()
    assert len(doctest.DocTestParser().get_examples(TEXT)) >= 8
    run(tmp_path, f"python -m doctest {PAGE}")  # in its own process, since it defines a block
