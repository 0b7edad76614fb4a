"""Compiling where text files are read as ASCII, in a process of its own: Python chooses the encoding at its start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import locale, sys
import torch
import zoo

model, tokens = zoo.build("qwen3-0.6b", tiny=True), torch.tensor([[1, 2, 3]])
before = locale.setlocale(locale.LC_CTYPE)
assert (locale.getencoding(), sys.flags.utf8_mode) == ("ANSI_X3.4-1968", 0)
with torch.no_grad():
    expected = model(tokens)
    model.compile()
    assert (model(tokens) - expected).abs().max() < 1e-4
assert locale.setlocale(locale.LC_CTYPE) == before
"""


def test_a_model_compiles_under_a_c_locale() -> None:
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
