"""The choice of kernel for each operation: "plain", which is torch's own call, or a kernel with the same result.

A forward pass only looks kernels up: an operation without a decision is plain. zoo.kernels decides once per machine.
The environment variable ZOO_KERNELS, or `use`, sets all kernels instead:

    ZOO_KERNELS=plain    torch's own calls
    ZOO_KERNELS=FILE     kernels from a file that `save` wrote; operations missing from it are plain

Kernels differ in speed and, because they sum in different orders, in the last bits of results. With the same kernels,
runs on one machine are bitwise reproducible.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zoo.core.inductor import constant
from zoo.errors import MalformedError, NotAvailable, unknown
from zoo.new_files import write_file
from zoo.units import dtype_name

PLAIN = "plain"
VARIABLE = "ZOO_KERNELS"
SCHEMA_VERSION = 2

Decision = tuple[str, torch.dtype]  # an operation in a dtype
_FLOATS = torch.float64, torch.float32, torch.bfloat16, torch.float16


class Operation(NamedTuple):
    """The alternative `kernel` of an operation and the `dtypes` that it supports."""

    kernel: str
    dtypes: tuple[torch.dtype, ...] = _FLOATS


OPERATIONS = {
    # matrix products with many rows (prefill) or few (decode): oneDNN instead of torch's BLAS library
    "linear prefill": Operation("onednn", (torch.float32,)),
    "linear decode": Operation("onednn", (torch.float32,)),
    # blocks of queries, one at a time, with all scores of a block in memory, instead of torch's SDPA
    "attention prefill": Operation("blocks"),
    # a reduction that Inductor compiles, instead of the library's matrix product
    "compiled decode linear": Operation("gemv"),
    # reductions for scores and weighted values
    "compiled decode attention": Operation("reduction"),
}


@dataclass
class KernelChoices:
    """The kernels of a process.

    `chosen`: the kernel for each operation and dtype. `is_set`: the kernels were set by the caller or ZOO_KERNELS, so
    that zoo.kernels decides nothing. `replaced`: the keys of `chosen` whose kernel is not plain.
    """

    chosen: dict[Decision, str] = field(default_factory=dict)
    is_set: bool = False
    replaced: set[Decision] = field(init=False)

    def __post_init__(self) -> None:
        self.replaced = {decision for decision, kernel in self.chosen.items() if kernel != PLAIN}

    def kernel(self, operation: str, dtype: torch.dtype) -> str:
        """Returns the kernel that computes an operation in a dtype."""
        return self.chosen.get((operation, dtype), PLAIN)

    def add(self, decided: Mapping[Decision, str]) -> None:
        """Adds decisions; they replace earlier ones."""
        self.chosen |= decided
        self.__post_init__()


# "plain", a file, kernels by name (see `parse`), or KernelChoices; None: nothing is set
Request = str | Path | Mapping[str, str] | KernelChoices | None


@constant
def is_replaced(operation: str, dtype: torch.dtype) -> bool:
    """Whether a kernel other than torch's own call computes an operation in a dtype. The compiler evaluates this while
    tracing, and compiled code contains the result."""
    return (operation, dtype) in active().replaced


def name(decision: Decision) -> str:
    """Returns an operation and its dtype as text, such as "linear prefill, float32"."""
    operation, dtype = decision
    return f"{operation}, {dtype_name(dtype)}"


current: KernelChoices | None = None  # None until ZOO_KERNELS is read


def active() -> KernelChoices:
    """Returns the kernels of this process. Raises NotAvailable or MalformedError for an unreadable ZOO_KERNELS."""
    global current
    if current is None:
        current = _read(os.environ.get(VARIABLE) or None)
    return current


def use(setting: Request) -> None:
    """Sets all kernels: "plain", a file that `save` wrote, or kernels by name (see `parse`).

    None discards all decisions and lets zoo.kernels decide. A model that is already compiled keeps its kernels. Raises
    NotAvailable for a file that cannot be read, MalformedError for a file with other content.
    """
    global current
    current = _read(setting)


@contextmanager
def using(setting: Request) -> Iterator[KernelChoices]:
    """Calls `use` for the duration of a with statement, and restores the earlier kernels afterwards."""
    global current
    before = current
    use(setting)
    try:
        yield active()
    finally:
        current = before


def choices() -> dict[str, str]:
    """Returns each kernel that is set or decided, by operation and dtype: {"linear prefill, float32": "onednn"}."""
    return as_text(active().chosen)


def save(path: str | Path) -> None:
    """Writes `choices` to a file for ZOO_KERNELS. Raises NotAvailable if the file cannot be written."""
    write(Path(path), active().chosen)


def write(path: Path, chosen: Mapping[Decision, str], **facts: Any) -> None:
    """Writes kernels and `facts` to a file, atomically."""
    document = {"schema_version": SCHEMA_VERSION, **facts, "kernels": as_text(chosen)}
    write_file(path, (json.dumps(document, indent=2) + "\n").encode())


def read(path: Path) -> tuple[dict[Decision, str], dict[str, Any]]:
    """Returns the kernels in a file and its whole content.

    Raises OSError if the file cannot be read, MalformedError for a file that `write` did not write.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MalformedError(f"{path}: not JSON: {error}") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION or not isinstance(document.get("kernels"), dict):
        raise MalformedError(f"{path}: not a file of kernels of schema_version {SCHEMA_VERSION}")
    return parse(document["kernels"], str(path)), document


def as_text(chosen: Mapping[Decision, str]) -> dict[str, str]:
    """Returns kernels by the `name` of operation and dtype, sorted."""
    return dict(sorted((name(decision), kernel) for decision, kernel in chosen.items()))


def parse(named: Mapping[str, str], where: str) -> dict[Decision, str]:
    """Parses kernels by name: "linear prefill, float32" is an operation in a dtype, "linear prefill" in all its dtypes.

    Raises MalformedError, which starts with `where`, for an unknown operation, dtype or kernel.
    """
    chosen: dict[Decision, str] = {}
    for given, kernel in sorted(named.items()):  # an operation comes first; its dtypes override it
        operation, _, dtype = given.partition(", ")
        if operation not in OPERATIONS:
            raise MalformedError(f"{where}: {unknown('operation', operation, OPERATIONS)}")
        dtypes = {dtype_name(each): each for each in OPERATIONS[operation].dtypes}
        if dtype and dtype not in dtypes:
            raise MalformedError(f"{where}: {unknown(f'dtype of {operation}', dtype, dtypes)}")
        kernels = (PLAIN, OPERATIONS[operation].kernel)
        if kernel not in kernels:
            raise MalformedError(f"{where}: {unknown(f'kernel of {operation}', str(kernel), kernels)}")
        chosen |= {(operation, each): kernel for each in ([dtypes[dtype]] if dtype else dtypes.values())}
    return chosen


def _read(setting: Request) -> KernelChoices:
    if isinstance(setting, KernelChoices):
        return setting
    if setting is None:
        return KernelChoices()
    if setting == PLAIN:
        return KernelChoices(is_set=True)
    if isinstance(setting, Mapping):
        return KernelChoices(parse(setting, "use"), is_set=True)
    try:
        return KernelChoices(read(Path(setting))[0], is_set=True)
    except OSError as error:
        raise NotAvailable(f"{VARIABLE}={setting}: neither {PLAIN!r} nor a file: {error.strerror}") from error
    except MalformedError as error:
        raise MalformedError(f"{VARIABLE}={error}") from error
