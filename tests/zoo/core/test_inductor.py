"""Compiling on other machines, in separate processes: Python and torch read their settings at the start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch._inductor import config
from torch._inductor.cpu_vec_isa import pick_vec_isa

from zoo.core import inductor

ROOT = Path(__file__).parents[3]
SCRIPT = """
import locale, sys
import torch
import zoo
from tests.exact import assert_equal

model, tokens = zoo.build("qwen3-0.6b", tiny=True, dtype=torch.float64), torch.tensor([[1, 2, 3]])
before = locale.setlocale(locale.LC_CTYPE)
assert (locale.getencoding(), sys.flags.utf8_mode) == ("ANSI_X3.4-1968", 0)
with torch.no_grad():
    expected = model(tokens)
    model.compile()
    assert_equal(model(tokens), expected)
assert locale.setlocale(locale.LC_CTYPE) == before
"""
ELSEWHERE = """
import torch
import zoo
from tests.exact import assert_equal

model, tokens = zoo.build("qwen3-0.6b", tiny=True, dtype=torch.float64), torch.tensor([[1, 2, 3]])
with torch.no_grad():
    expected = model(tokens)
    model.compile()
    assert_equal(model(tokens), expected)
"""


def run(script: str, **settings: str) -> None:
    """Runs a script in its own process; it must succeed."""
    command, environment = [sys.executable, "-c", script], os.environ | settings
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_model_compiles_under_a_c_locale() -> None:
    run(SCRIPT, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")


@pytest.mark.slow
def test_processors_with_other_instructions_share_a_cache(tmp_path: Path) -> None:
    """Each processor finds the code that earlier ones have stored there."""
    for capability in ("avx512", "avx2", "default"):
        run(ELSEWHERE, TORCHINDUCTOR_CACHE_DIR=str(tmp_path), ATEN_CPU_CAPABILITY=capability)


def test_the_width_of_vectors_is_a_setting_of_the_compiler() -> None:
    """A width that the user has set is kept. (torch's own patch: undoing pytest's would remove the setting.)"""
    with config.patch({"cpp.simdlen": None}):
        isa = pick_vec_isa()
        assert inductor.options()["cpp.simdlen"] == (isa.bit_width() if isa else 1)
        assert config.cpp.simdlen is None, "the process's own setting is left alone"
    with config.patch({"cpp.simdlen": 64}):
        assert inductor.options()["cpp.simdlen"] == 64
