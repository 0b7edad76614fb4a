"""python -m zoo.kernels decides the undecided kernels of a machine and shows all."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import zoo
from zoo.cli.runner import exit_code
from zoo.core import kernels
from zoo.core.kernels import OPERATIONS, PLAIN, Decision
from zoo.errors import NotAvailable
from zoo.kernel_choice import deciding, kept

PROG = "python -m zoo.kernels"
MODULE = runpy.run_module("zoo.kernels")
APP = MODULE["app"]
EAGER = 2 + 3  # float32 products, and attention in three dtypes


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Decision]]:
    """The decisions that were measured; each finds the other kernel faster."""
    found: list[Decision] = []
    monkeypatch.setattr(deciding, "measure", lambda each, *_: found.append(each) or OPERATIONS[each[0]].kernel)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with kernels.using(None):
        yield found


def call(*args: str) -> int:
    return exit_code(APP, PROG, args)


def without_compiler() -> None:
    raise NotAvailable("none")


def test_everything_is_decided_and_shown_and_kept(
    measured: list[Decision], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.core.inductor.find_compiler", lambda: None)
    assert call() == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(measured) == len(set(measured)) == EAGER + 2 * 3
    assert f"Kept in {kept.path()}." in out
    assert [line.split() for line in out.splitlines() if line.startswith("compiled decode linear")] == [
        ["compiled", "decode", "linear", dtype, "gemv"] for dtype in ("float32", "bfloat16", "float16")
    ]
    kernels.use(None)
    assert call("--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert len(measured) == EAGER + 6, "once a machine"
    assert (document["file"], document["set"]) == (str(kept.path()), False)
    assert {"operation": "linear prefill", "dtype": "float32", "kernel": "onednn"} in document["rows"]
    with kernels.using(document["file"]):
        assert len(kernels.choices()) == len(document["rows"]) == EAGER + 6
    kernels.use(None)
    assert call("--again") == 0
    assert len(measured) == 2 * (EAGER + 6)


def test_without_a_compiler_only_operations_that_need_none_are_decided(
    measured: list[Decision], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("zoo.core.inductor.find_compiler", without_compiler)
    assert call() == 0
    assert "compiled" not in capsys.readouterr().out
    assert len(measured) == EAGER


def test_kernels_that_are_set_are_shown(measured: list[Decision], capsys: pytest.CaptureFixture[str]) -> None:
    with kernels.using({"linear prefill": "onednn"}):
        assert call() == 0
    out = capsys.readouterr().out
    assert "Set by ZOO_KERNELS." in out
    assert out.count("onednn") == 1
    assert measured == []


def test_the_number_of_threads_is_part_of_the_machine(measured: list[Decision]) -> None:
    before = torch.get_num_threads()
    try:
        assert call("--threads", str(before + 1)) == 0
        assert kept.read() != {}
    finally:
        torch.set_num_threads(before)
    assert kept.read() == {}


def test_the_command_runs_beside_the_functions_of_its_name() -> None:
    """`zoo.kernels` is zoo.kernel_choice, so runpy does not warn; `import zoo.kernels` offers the same functions."""
    names = [name for name, value in vars(zoo.kernels).items() if callable(value)]
    assert "use" in names
    assert all(MODULE[name] is getattr(zoo.kernels, name) for name in names)
    environment = os.environ | {"ZOO_KERNELS": PLAIN}
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "zoo.kernels"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "linear prefill" in done.stdout
