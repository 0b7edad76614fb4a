"""The machine of a measurement: its clock, memory, caches, and other facts that influence the results."""

import ctypes
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure.timing import Clock
from benchmarks.output.report import Report, Row, Table
from zoo.core import kernels
from zoo.core.devices import cpu_flags, free_memory, machine
from zoo.errors import NotAvailable
from zoo.units import format_bytes

CPU = torch.device("cpu")
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ROOT = Path(__file__).resolve().parents[2]
# The instruction set extensions that matter to matrix products, as Linux names them on x86 and on ARM.
ISA = re.compile(r"avx2|fma|avx512f|avx512_bf16|avx512_fp16|avx512_vnni|amx_\w+|asimd\w*|sve\w*|i8mm|bf16")
OR = " or "


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

    The meter returns None if the system does not report the peak. On a CUDA device it reads torch's allocator.
    Elsewhere it reads this process's peak resident memory from Linux, which can reset that record. Unused heap memory
    goes back to the system first, because reusing it would not raise the peak.
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
    except OSError:  # not Linux, or writing is not permitted
        return lambda: None
    return lambda: max(_status("VmHWM") - resident, 0)


def _status(name: str) -> int:
    """Returns the value of a line of /proc/self/status, in bytes."""
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
    """Returns the size of the last-level cache in bytes; None if the system does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return _cpu_cache(Path("/sys/devices/system/cpu")) if device.type == "cpu" else None


def _cpu_cache(cpus: Path) -> int | None:
    """Returns the size of the last-level cache in bytes, summed over all sockets.

    Processors that share a cache report the same `shared_cpu_list`.
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


@contextmanager
def recorded(
    report: Report, device: torch.device, tables: Callable[[], Iterable[Table]] = lambda: ()
) -> Iterator[None]:
    """Records a measurement's environment, the kernels it used, and whether it is complete, in the report.

    Kernels are chosen while models are built, so they are recorded at the end. Then the `tables` are added. Both also
    happen after an exception or Ctrl-C.
    """
    report.about |= {"complete": False, "machine": environment(device)}
    try:
        yield
        report.about["complete"] = True
    finally:
        report.about["machine"] |= used_kernels()
        report.add(*tables())


def environment(device: torch.device) -> Row:
    """Returns facts about the machine of a measurement, with the kernels chosen so far.

    Raises NotAvailable or MalformedError for a ZOO_KERNELS file that cannot be read.
    """
    cuda = device.type == "cuda"
    return {
        **machine(),
        "isa": _isa(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "blas": _blas(torch.__config__.show()),
        "device": str(device),
        "last_cache_bytes": last_cache(device),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None,
        "commit": _commit(),
        **used_kernels(),
    }


def used_kernels() -> Row:
    """Returns the kernels that are chosen or set in this process, and the ZOO_KERNELS setting, if any."""
    return {"kernels": kernels.choices(), "kernels_set": os.environ.get(kernels.VARIABLE) or None}


def merged(choices: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Merges the kernels chosen in several processes. Different choices are joined: "onednn or plain"."""
    found: dict[str, set[str]] = {}
    for each in choices:
        for name, kernel in each.items():
            found.setdefault(name, set()).update(kernel.split(OR))
    return {name: OR.join(sorted(found[name])) for name in sorted(found)}


def kernel_summary(machine: Mapping[str, Any]) -> str:
    """Returns one line with the kernels that a document records: "kernels: linear prefill float32: onednn".

    Files of earlier versions list a kernel for each class of sizes. The line then names all kernels of an operation
    and dtype.
    """
    found = merged({" ".join(name.split(", ")[:2]): kernel} for name, kernel in machine["kernels"].items())
    summary = ", ".join(f"{name}: {kernel}" for name, kernel in found.items())
    setting = machine.get("kernels_set")
    return f"kernels{f' ({kernels.VARIABLE}={Path(setting).name})' if setting else ''}: {summary or kernels.PLAIN}"


def _isa() -> list[str]:
    """Returns the instruction set extensions that the processor reports."""
    flags = cpu_flags()
    return sorted({flag for flag in flags if len(flags) == 1 or ISA.fullmatch(flag)})


def _blas(config: str) -> str:
    """Returns the matrix libraries that torch was built with, from its build configuration."""
    blas = re.search(r"BLAS_INFO=(\w+)", config)
    named = re.findall(r"(?:oneAPI Math Kernel Library|MKL-DNN|OpenBLAS) (?:Version |v)?[\d.]+", config)
    return "; ".join(named) or (blas[1] if blas else "unknown")


def _commit() -> str | None:
    """Returns this project's commit, with "-dirty" if there are uncommitted changes; None outside a git checkout."""
    top = _first_line("git", "-C", str(ROOT), "rev-parse", "--show-toplevel")
    if top is None or Path(top) != ROOT:
        return None
    return _first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _first_line(*command: str) -> str | None:
    """Returns the first line that a command prints; None if the command is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().partition("\n")[0] or None if done.returncode == 0 else None
