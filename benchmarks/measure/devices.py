"""What the two kinds of devices measure differently: their clock, and the most memory that something takes."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.measure.timing import Clock

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class DeviceClock:
    """Seconds by a CUDA device's own events. Each reading waits until all that was asked of the device is done."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._seconds = device, 0.0
        self._last = self._event()

    def __call__(self) -> float:
        now = self._event()
        self._seconds += self._last.elapsed_time(now) / 1000
        self._last = now
        return self._seconds

    def _event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        event.synchronize()
        return event


def clock(device: torch.device) -> Clock:
    """The clock of a device."""
    return DeviceClock(device) if device.type == "cuda" else time.perf_counter


class Meter(Protocol):
    """The most memory held since `start`, above what was held then."""

    def start(self) -> None: ...
    def peak(self) -> int | None:
        """Bytes; None where the system does not say."""


class Resident:
    """Of this process, by Linux's own record of the most pages it had, which can be reset.

    What was freed before is handed back first: else it would be used again, and not counted.
    """

    def __init__(self) -> None:
        self._before: int | None = None

    def start(self) -> None:
        _trim()
        try:
            RESET.write_text("5", encoding="ascii")
            self._before = _status("VmRSS")
        except OSError:  # another system, or one that does not allow it
            self._before = None

    def peak(self) -> int | None:
        return None if self._before is None else max(_status("VmHWM") - self._before, 0)


class Allocated:
    """Of a CUDA device, by torch's allocator."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._before = device, 0

    def start(self) -> None:
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def peak(self) -> int | None:
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - self._before


def meter(device: torch.device) -> Meter:
    """The meter of a device."""
    return Allocated(device) if device.type == "cuda" else Resident()


def _trim() -> None:
    """Hand freed memory back to the system, where the C library can."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def last_cache(device: torch.device) -> int | None:
    """Bytes of the last cache before memory; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return _cpu_cache(Path("/sys/devices/system/cpu")) if device.type == "cpu" else None


def _cpu_cache(cpus: Path) -> int | None:
    """All of the highest level, that of several sockets added up: each cache tells the processors that share it."""
    found: dict[tuple[int, str], int] = {}
    for index in cpus.glob("cpu[0-9]*/cache/index*"):
        read: Callable[[str], str] = lambda name, index=index: (index / name).read_text(encoding="ascii").strip()  # type: ignore[misc]  # noqa: E731
        try:
            if read("type") != "Instruction":
                found[int(read("level")), read("shared_cpu_list")] = _kibibytes(read("size"))
        except (OSError, ValueError):
            continue
    last = max((level for level, _ in found), default=None)
    return sum(size for (level, _), size in found.items() if level == last) or None


def _kibibytes(text: str) -> int:
    """32768K -> bytes"""
    return int(text.removesuffix("K")) * 1024
