"""The environment of a measurement: facts that influence figures, beyond the machine that every document names."""

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure.devices import last_cache
from benchmarks.output.report import Report
from zoo.core import kernels
from zoo.core.devices import cpu_flags, machine

ROOT = Path(__file__).resolve().parents[2]
# The extensions that matter to matrix products, as Linux names them on x86 and on ARM.
ISA = re.compile(r"avx2|fma|avx512f|avx512_bf16|avx512_fp16|avx512_vnni|amx_\w+|asimd\w*|sve\w*|i8mm|bf16")
OR = " or "


@contextmanager
def recorded(report: Report, device: torch.device) -> Iterator[None]:
    """Records the environment of a measurement in the report, whether it is complete, and the kernels that it used.

    Kernels are chosen while models are built, so they are read at the end, also after an exception or Ctrl-C.
    """
    report.about |= {"complete": False, "machine": environment(device)}
    try:
        yield
        report.about["complete"] = True
    finally:
        report.about["machine"] |= used_kernels()


def environment(device: torch.device) -> dict[str, Any]:
    """Returns the machine of a measurement, with the kernels chosen so far.

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


def used_kernels() -> dict[str, Any]:
    """Returns the kernels that are chosen or set in this process, and the ZOO_KERNELS setting, if any."""
    return {"kernels": kernels.choices(), "kernels_set": os.environ.get(kernels.VARIABLE) or None}


def merged(choices: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Returns the kernels of several processes. If they differ, all are named: "onednn or plain"."""
    found: dict[str, set[str]] = {}
    for each in choices:
        for name, kernel in each.items():
            found.setdefault(name, set()).update(kernel.split(OR))
    return {name: OR.join(sorted(found[name])) for name in sorted(found)}


def kernel_summary(machine: Mapping[str, Any]) -> str:
    """Returns the kernels of a machine block, in a line: "linear prefill float32: onednn"; empty without any.

    Files of earlier versions list kernels by class of sizes. All kernels of an operation and dtype are named then.
    """
    if "kernels" not in machine:
        return ""
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
    """Returns this project's commit if it runs from a checkout, "-dirty" with uncommitted changes; None elsewhere."""
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
