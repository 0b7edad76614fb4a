"""Clocks, memory meters and caches of the CPU and of CUDA devices, and other facts that influence measurements."""

from __future__ import annotations

import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks.measure import environment as module
from benchmarks.measure.environment import (
    CPU,
    CudaClock,
    _blas,
    _cpu_cache,
    clock,
    environment,
    kernel_summary,
    merged,
    recorded,
    start_memory_meter,
)
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
    """It is not that of a repository around an installed copy. It is marked if there are uncommitted changes."""
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
    monkeypatch.setattr(module, "ROOT", tmp_path.resolve())
    monkeypatch.setenv("PATH", "")  # there is no git
    assert module._commit() is None


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


def tree(root: Path, caches: list[tuple[str, str, str, str, str]]) -> Path:
    """Files as Linux has them: (processor, level, type, size, shared by) of each cache."""
    for number, (cpu, level, kind, size, shared) in enumerate(caches):
        folder = root / cpu / "cache" / f"index{number}"
        folder.mkdir(parents=True)
        for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
            (folder / name).write_text(f"{text}\n", encoding="ascii")
    return root


def test_the_last_cache_is_that_of_all_sockets_counted_once(tmp_path: Path) -> None:
    found = tree(
        tmp_path,
        [
            ("cpu0", "1", "Instruction", "32K", "0"),
            ("cpu0", "2", "Unified", "1024K", "0"),
            ("cpu0", "3", "Unified", "32768K", "0-1"),
            ("cpu1", "3", "Unified", "32768K", "0-1"),
            ("cpu2", "3", "Unified", "16384K", "2-3"),
        ],
    )
    assert _cpu_cache(found) == (32 + 16) * 2**20


def test_a_machine_without_readable_caches_has_no_last_cache(tmp_path: Path) -> None:
    assert _cpu_cache(tmp_path) is None
    assert _cpu_cache(tree(tmp_path, [("cpu0", "3", "Unified", "much", "0")])) is None


def test_the_cpu_has_a_plain_clock_and_perhaps_no_record_of_memory(tmp_path: Path, monkeypatch) -> None:
    assert clock(torch.device("cpu")) is time.perf_counter
    monkeypatch.setattr(module, "RESET", tmp_path / "nowhere" / "clear_refs")
    assert start_memory_meter(CPU)() is None


class Event:
    """A CUDA event at a time that the test sets, in milliseconds."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        self.at = Event.now

    def synchronize(self) -> None: ...

    def elapsed_time(self, later: Event) -> float:
        return later.at - self.at


def test_seconds_of_a_cuda_device_add_up_from_event_to_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    read = CudaClock(torch.device("cuda"))
    Event.now = 250.0
    assert read() == 0.25
    Event.now = 1000.0
    assert (read(), read()) == (1.0, 1.0)


@pytest.mark.gpu
def test_a_cuda_device_has_its_own_clock_and_peak_memory() -> None:
    device = torch.device("cuda")
    read, peak = clock(device), start_memory_meter(device)
    assert isinstance(read, CudaClock)
    before = read()
    torch.ones(2**26, device=device).square_()
    assert read() > before
    assert peak() == 2**28
    assert (module.last_cache(device) or 0) > 2**20
