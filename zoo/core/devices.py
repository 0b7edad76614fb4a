"""Devices and memory of this machine, and a description of it for documents."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from zoo.errors import NotAvailable, unknown

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
KEPT_BYTES = 2**27  # maximum bytes of freed memory to keep
MAX_HEAP_BLOCK = 2**25  # maximum bytes of a block served from freed memory: glibc's own limit
MALLOC_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def find_device(name: str | torch.device) -> torch.device:
    """Returns the torch device with this name. Raises UsageError for an unknown name, NotAvailable if it is missing."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", str(name), ["cpu", "cuda", "meta", "mps"]) from None
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise NotAvailable(f"no device {name} here: {reason}") from error
    return device


@contextmanager
def allocating(device: str | torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Allocates new tensors on this device and, unless they ask for another dtype, in this dtype.

    The setting applies to the whole process: two threads must not use it at the same time.
    """
    keep_freed_memory()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


@cache
def keep_freed_memory() -> None:
    """Makes glibc keep up to 128 MiB of freed memory instead of returning it to the system.

    A layer's activations are a few megabytes each and are freed before the next layer. glibc would return them at once,
    and the system would clear each page again. A 512-token prefill of a model of 135 million parameters would clear 430
    MB, a quarter of its time. Nothing changes if the environment configures malloc or loads another malloc.
    """
    if any(name in os.environ for name in MALLOC_SETTINGS):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(M_MMAP_THRESHOLD, MAX_HEAP_BLOCK)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def machine() -> dict[str, Any]:
    """Describes this machine, for documents with figures measured on it."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu_info("model name") or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def cpu_flags() -> list[str]:
    """Returns the processor's features by their Linux names; on other systems, the capability that torch detects."""
    return _cpu_info("flags", "Features").split() or [torch.backends.cpu.get_cpu_capability()]


def _cpu_info(*names: str) -> str:
    """Returns the value of the first line in /proc/cpuinfo that starts with one of these names; "" if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")


def free_memory(device: torch.device) -> int | None:
    """Returns the bytes that can still be allocated on a device; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    return min((free for free in (_free_on_machine(), *_free_in_group()) if free is not None), default=None)


def _free_on_machine() -> int | None:
    """Returns Linux's estimate of free bytes; on other systems all physical memory, an upper bound; None if unknown."""
    try:
        meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return int(meminfo["MemAvailable"].removesuffix("kB")) * 1024
    except (OSError, KeyError):
        sysconf = getattr(os, "sysconf", None)  # not on Windows
        return sysconf("SC_PHYS_PAGES") * sysconf("SC_PAGE_SIZE") if sysconf else None


def _free_in_group() -> Iterator[int]:
    """Yields the bytes that control groups (version 2, 1) still leave to a container. Cached file pages count as
    free."""
    for folder, limit, usage, cached in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            files = (Path(folder, name) for name in (limit, usage, "memory.stat"))
            allowed, used, stat = (file.read_text(encoding="ascii") for file in files)
            pages = dict(line.split() for line in stat.splitlines())
            yield int(allowed) - int(used) + int(pages[cached])
        except (OSError, KeyError, ValueError):  # no such group, or no limit ("max")
            continue
