"""Clocks, memory meters and caches of the CPU and of CUDA devices."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from benchmarks.measure import environment as devices
from benchmarks.measure.environment import CudaClock, _cpu_cache, clock, start_memory_meter


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


def test_the_cpu_has_a_plain_clock_and_its_resident_memory() -> None:
    assert clock(torch.device("cpu")) is time.perf_counter
    taken = start_memory_meter(devices.CPU)()
    assert taken is None or taken >= 0


def test_peak_memory_is_unknown_without_a_record_to_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "RESET", tmp_path / "nowhere" / "clear_refs")
    assert start_memory_meter(devices.CPU)() is None


class Event:
    """A CUDA event at a time that the test says, in milliseconds."""

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
    assert (devices.last_cache(device) or 0) > 2**20
