"""The block that says what measured figures depend on."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks.measure import environment as module
from benchmarks.measure.environment import _blas, environment, kernel_summary, merged, recorded
from benchmarks.output.report import Report
from zoo.cli.tables import Format
from zoo.core import kernels
from zoo.errors import MalformedError


def test_the_environment_holds_what_figures_depend_on() -> None:
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
def test_matrix_libraries_are_read_from_the_build_configuration(config: str, told: str) -> None:
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


CPU = torch.device("cpu")


LINEAR = ("linear prefill", torch.float32)


def test_the_machine_says_which_kernels_are_used_and_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_KERNELS", "choices.json")
    with kernels.using({"linear prefill": "onednn", "attention prefill, bfloat16": "plain"}):
        found = environment(CPU)
    assert found["kernels"] == {"attention prefill, bfloat16": "plain", "linear prefill, float32": "onednn"}
    assert found["kernels_set"] == "choices.json"
    for setting in (None, ""):
        monkeypatch.delenv("ZOO_KERNELS") if setting is None else monkeypatch.setenv("ZOO_KERNELS", setting)
        with kernels.using({}):
            assert (environment(CPU)["kernels"], environment(CPU)["kernels_set"]) == ({}, None)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, MalformedError])
def test_kernels_are_read_when_the_measurement_ends_however_it_ends(error: type[BaseException] | None) -> None:
    report = Report(Format.json)
    ending = pytest.raises(error) if error else nullcontext()
    with kernels.using(None) as active, ending, recorded(report, CPU):
        assert (report.about["complete"], report.about["machine"]["kernels"]) == (False, {})
        active.add({LINEAR: "onednn"})
        if error is not None:
            raise error
    assert report.about["machine"]["kernels"] == {"linear prefill, float32": "onednn"}
    assert report.about["complete"] is (error is None)


def test_an_unreadable_kernel_setting_is_an_error_before_anything_runs(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "choices.json").write_text("[]", encoding="utf-8")
    monkeypatch.setenv("ZOO_KERNELS", str(tmp_path / "choices.json"))
    monkeypatch.setattr(kernels, "current", None)
    with pytest.raises(MalformedError, match="not a file of kernels"), recorded(Report(Format.json), CPU):
        pytest.fail("it ran")


def test_choices_of_several_processes_are_merged_and_what_differs_is_kept() -> None:
    found = merged([{"a": "plain", "b": "onednn"}, {"b": "plain"}, {"c": "gemv"}])
    assert found == {"a": "plain", "b": "onednn or plain", "c": "gemv"}
    assert merged([found, {"b": "plain"}]) == found
    assert merged([]) == {}


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        ({}, ""),  # written before kernels were recorded
        ({"kernels": {}, "kernels_set": None}, "kernels: plain"),
        ({"kernels": {}, "kernels_set": "plain"}, "kernels (ZOO_KERNELS=plain): plain"),
        ({"kernels": {}, "kernels_set": "/a/folder/x.json"}, "kernels (ZOO_KERNELS=x.json): plain"),
        (
            {
                "kernels": {
                    "attention prefill, float32": "plain",
                    "linear prefill, float32": "onednn or plain",
                    "linear decode, float32": "onednn",
                }
            },
            "kernels: attention prefill float32: plain, linear decode float32: onednn, "
            "linear prefill float32: onednn or plain",
        ),
        (  # as earlier versions recorded them, by classes of sizes
            {"kernels": {"linear, float32, rows 1": "onednn", "linear, float32, rows 4": "plain"}},
            "kernels: linear float32: onednn or plain",
        ),
    ],
)
def test_kernels_are_summed_up_by_operation_and_dtype(machine: dict, told: str) -> None:
    assert kernel_summary(machine) == told
