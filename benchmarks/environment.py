"""What measured figures depend on, beyond what every document says of its machine."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.devices import last_cache
from zoo.terminal import machine

ROOT = Path(__file__).resolve().parents[1]
# What matters to matrix products, as Linux calls it on x86 and on ARM.
ISA = re.compile(r"\b(avx2|fma|avx512f|avx512_bf16|avx512_fp16|avx512_vnni|amx_\w+|asimd\w*|sve\w*|i8mm|bf16)\b")


def environment(device: torch.device) -> dict[str, Any]:
    """The machine of a measurement."""
    cuda = device.type == "cuda"
    return {
        **machine(),
        "isa": _isa(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "blas": _blas(torch.__config__.show()),
        "device": str(device),
        "last_cache_bytes": last_cache(device),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None,
        "commit": _commit(),
    }


def _isa() -> list[str]:
    """The extensions that the processor says it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [torch.backends.cpu.get_cpu_capability()]
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return sorted(set(ISA.findall(flags)))


def _blas(config: str) -> str:
    """The libraries that torch multiplies with, of what it says of its build."""
    blas = re.search(r"BLAS_INFO=(\w+)", config)
    named = re.findall(r"(?:oneAPI Math Kernel Library|MKL-DNN|OpenBLAS) (?:Version |v)?[\d.]+", config)
    return "; ".join(named) or (blas[1] if blas else "unknown")


def _commit() -> str | None:
    """The commit of this project, where it runs from a checkout; "-dirty" with changes that are in none."""
    top = _said("git", "-C", str(ROOT), "rev-parse", "--show-toplevel")
    if top is None or Path(top) != ROOT:
        return None
    return _said("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _said(*command: str) -> str | None:
    """The first line that a command prints; None if there is no such command, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().partition("\n")[0] or None if done.returncode == 0 else None
