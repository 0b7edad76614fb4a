"""Stores decisions in the user's cache folder, with one file for each processor, torch version and number of threads.

    ~/.cache/zoo/kernels/0123456789ab.json       XDG_CACHE_HOME replaces ~/.cache; on Windows LOCALAPPDATA

The file describes its machine. It can also be given as ZOO_KERNELS.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from zoo.core import kernels
from zoo.core.devices import cpu_flags, machine
from zoo.core.kernels import Decision
from zoo.errors import MalformedError, NotAvailable
from zoo.new_files import lock

# Variables that stop a library from using instructions of the processor.
RESTRICTIONS = ("DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
MAX_WAIT_SECONDS = 60.0  # for another process that is deciding
log = logging.getLogger(__name__)


def this_machine() -> dict[str, Any]:
    """Returns the facts that decisions depend on: processor, its features, torch's version, number of threads."""
    about = machine()
    return {
        "cpu": about["cpu"],
        "features": sorted(cpu_flags()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "restrictions": {name: os.environ[name] for name in RESTRICTIONS if name in os.environ},
        "torch": about["torch"],
        "threads": about["threads"],
    }


def cache_folder(windows: bool = os.name == "nt") -> Path:
    """Returns the user's cache folder. Raises NotAvailable for a user without a home."""
    variable, default = ("LOCALAPPDATA", "AppData/Local") if windows else ("XDG_CACHE_HOME", ".cache")
    folder = Path(os.environ.get(variable, ""))
    try:
        return folder if folder.is_absolute() else Path.home() / default
    except RuntimeError as error:
        raise NotAvailable(f"there is no cache folder: {error}") from error


def path() -> Path:
    """Returns the file of this machine's decisions. Raises NotAvailable for a user without a home."""
    digest = hashlib.sha256(json.dumps(this_machine(), sort_keys=True).encode()).hexdigest()
    return cache_folder() / "zoo" / "kernels" / f"{digest[:12]}.json"


def read() -> dict[Decision, str]:
    """Returns the stored decisions. A file that is damaged or belongs to another machine is renamed, with a warning."""
    with suppress(NotAvailable):
        file = path()
        try:
            chosen, document = kernels.read(file)
            if document.get("machine") == this_machine():
                return chosen
            reason = f"{file}: of another machine"
        except FileNotFoundError:
            return {}
        except OSError as error:
            reason = f"{file}: {error.strerror}"
        except (MalformedError, RecursionError) as error:
            reason = str(error)
        with suppress(OSError):
            file.replace(file.with_suffix(".unread"))
        log.warning("kernels are decided again: %s", reason)
    return {}


def write(decided: Mapping[Decision, str]) -> None:
    """Adds decisions to the stored ones. Logs a warning if the file cannot be written."""
    try:
        kernels.write(path(), {**read(), **decided}, machine=this_machine())
    except NotAvailable as error:
        log.warning("kernels are decided by each process: %s", error)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Lets one process decide at a time, so that the others, which wait, find its decisions. Without write access, none
    waits."""
    try:
        file = path()
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o666)
    except (NotAvailable, OSError):
        yield
        return
    try:
        lock(descriptor, MAX_WAIT_SECONDS)
        yield
    finally:
        os.close(descriptor)
