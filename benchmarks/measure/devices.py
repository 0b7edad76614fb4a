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
    """Seconds by a CUDA device's own events. Each reading waits until the device has finished all work."""

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
    return CudaClock(device) if device.type == "cuda" else time.perf_counter


def start_memory_meter(device: torch.device) -> Callable[[], int | None]:
    """A function -> peak memory since now, in bytes above what is held now; None where the system does not say.

    On a CUDA device it counts by torch's allocator; elsewhere the resident memory of this process, by Linux's record of
    its peak, which can be reset. Memory that is free now goes back to the system first, or it would be used uncounted.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)

        def peak() -> int:
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_allocated(device) - allocated

        return peak
    with suppress(OSError, AttributeError, TypeError):  # a C library that cannot
        ctypes.CDLL(None).malloc_trim(0)
    try:
        RESET.write_text("5", encoding="ascii")
        resident = _status("VmRSS")
    except OSError:  # another system, or one that does not allow it
        return lambda: None
    return lambda: max(_status("VmHWM") - resident, 0)


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def require_memory(needed: int, device: torch.device, what: str, advice: Callable[[int], str]) -> None:
    """Raise NotAvailable unless `needed` bytes are free. The message is `what` ("the weights need"), both amounts, and
    the `advice` for so many free bytes."""
    free = free_memory(device)
    if free is not None and needed > free:
        amounts = f"{format_bytes(needed)}, and {format_bytes(free)} is free on {device}"
        raise NotAvailable(f"{what} {amounts}; {advice(free)}")


def last_cache(device: torch.device) -> int | None:
    """Bytes of the last cache before memory; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return _cpu_cache(Path("/sys/devices/system/cpu")) if device.type == "cpu" else None


def _cpu_cache(cpus: Path) -> int | None:
    """Bytes of the highest cache level, all sockets together: processors that share a cache name it alike."""
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
