"""The block that says what measured figures depend on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import environment as module
from benchmarks.environment import _blas, environment


def test_it_says_what_figures_depend_on() -> None:
    found = environment(torch.device("cpu"))
    assert {"cpu", "torch", "threads"} <= found.keys()
    assert found["cores"] >= 1
    assert found["blas"]
    assert (found["device"], found["gpu"], found["driver"]) == ("cpu", None, None)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            "  - Intel(R) oneAPI Math Kernel Library Version 2024.2-Product\n  - Intel(R) MKL-DNN v3.12.0 (Git",
            "oneAPI Math Kernel Library Version 2024.2; MKL-DNN v3.12.0",
        ),
        ("  - OpenBLAS 0.3.29\n  - Build settings: BLAS_INFO=open, ", "OpenBLAS 0.3.29"),
        ("  - Build settings: BLAS_INFO=accelerate, BUILD", "accelerate"),
        ("", "unknown"),
    ],
)
def test_the_library_that_multiplies(config: str, told: str) -> None:
    assert _blas(config) == told


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_the_project_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of a repository around an installed copy; with changes, it is marked."""
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setattr(module, "ROOT", tmp_path.resolve())
    assert module._commit() == head
    (tmp_path / "file").write_text("2")
    assert module._commit() == f"{head}-dirty"
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(module, "ROOT", tmp_path.resolve() / "site-packages")
    assert module._commit() is None


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert module._commit() is None
