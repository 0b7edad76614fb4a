"""Clock, peak memory, free memory and cache size of a device: the CPU or a CUDA device."""

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure.timing import Clock
from zoo.core.devices import free_memory
from zoo.errors import NotAvailable
from zoo.units import format_bytes

CPU = torch.device("cpu")
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class CudaClock:
    """A clock that reads seconds from a CUDA device's own events. Each reading waits until the device is idle."""

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
    """Returns the clock of a device."""
    return CudaClock(device) if device.type == "cuda" else time.perf_counter


def start_memory_meter(device: torch.device) -> Callable[[], int | None]:
    """Starts a memory meter: a function that returns the peak memory since now, in bytes above the memory in use now.

    The function returns None if the system does not report it. On a CUDA device it counts by torch's allocator.
    Elsewhere it counts this process's resident memory, by Linux's record of the peak, which can be reset. Free memory
    goes back to the system first: its use would not be counted otherwise.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)

        def peak() -> int:
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_allocated(device) - allocated

        return peak
    with suppress(OSError, AttributeError, TypeError):  # a C library without this function
        ctypes.CDLL(None).malloc_trim(0)
    try:
        RESET.write_text("5", encoding="ascii")
        resident = _status("VmRSS")
    except OSError:  # another system, or one that does not allow it
        return lambda: None
    return lambda: max(_status("VmHWM") - resident, 0)


def _status(name: str) -> int:
    """Returns a line of /proc/self/status, in bytes."""
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def require_memory(needed: int, device: torch.device, what: str, advice: Callable[[int], str]) -> None:
    """Raises NotAvailable unless `needed` bytes are free.

    The message consists of `what` ("the weights need"), both amounts, and the `advice` for the number of free bytes.
    """
    free = free_memory(device)
    if free is not None and needed > free:
        amounts = f"{format_bytes(needed)}, and {format_bytes(free)} is free on {device}"
        raise NotAvailable(f"{what} {amounts}; {advice(free)}")


def last_cache(device: torch.device) -> int | None:
    """Returns the bytes of the last cache before memory; None if the system does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return _cpu_cache(Path("/sys/devices/system/cpu")) if device.type == "cpu" else None


def _cpu_cache(cpus: Path) -> int | None:
    """Returns the bytes of the highest cache level, all sockets together.

    Processors that share a cache give it the same name.
    """
    sizes: dict[tuple[int, str], int] = {}
    for index in cpus.glob("cpu[0-9]*/cache/index*"):
        try:
            files = (index / name for name in ("type", "level", "shared_cpu_list", "size"))
            kind, level, shared, size = (file.read_text(encoding="ascii").strip() for file in files)
            if kind != "Instruction":
                sizes[int(level), shared] = int(size.removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    last = max((level for level, _ in sizes), default=None)
    return sum(size for (level, _), size in sizes.items() if level == last) or None
