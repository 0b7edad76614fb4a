"""Which kernel computes an operation: torch's own call, "plain", or another one that computes the same.

A forward pass looks kernels up and decides nothing: an operation without a decision is plain. zoo.kernels decides, once
a machine. The environment variable ZOO_KERNELS, or `use`, sets all kernels instead:

    ZOO_KERNELS=plain    torch's own calls
    ZOO_KERNELS=FILE     as in a file that `save` wrote; an operation that it does not name is plain

Kernels change speed and, since they add up in different orders, the last bits of results. With the same kernels a run
repeats bit by bit on one machine.
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

from zoo.errors import MalformedError, NotAvailable, unknown
from zoo.new_files import write_file

PLAIN = "plain"
VARIABLE = "ZOO_KERNELS"
SCHEMA_VERSION = 2  # 1: a kernel for each class of sizes

Decision = tuple[str, torch.dtype]  # an operation in a dtype
_FLOATS = torch.float64, torch.float32, torch.bfloat16, torch.float16


class Operation(NamedTuple):
    """The `kernel` that may compute an operation instead of the plain one, and the `dtypes` in which it can."""

    kernel: str
    dtypes: tuple[torch.dtype, ...] = _FLOATS


OPERATIONS = {
    # matrix products of many rows, and of few: oneDNN instead of the BLAS library that torch was built with
    "linear prefill": Operation("onednn", (torch.float32,)),
    "linear decode": Operation("onednn", (torch.float32,)),
    # a block of queries at a time, its scores in memory, instead of torch's SDPA
    "attention prefill": Operation("blocks"),
    # a reduction that Inductor compiles, instead of the library's product
    "compiled decode linear": Operation("gemv"),
    # the same for scores and weighted values
    "compiled decode attention": Operation("reduction"),
}


@dataclass
class KernelChoices:
    """The kernels of a process. `chosen`: the kernel of each decision. `is_set`: the caller or ZOO_KERNELS set them, so
    that nothing else is decided. `replaced`: the decisions against the plain kernel."""

    chosen: dict[Decision, str] = field(default_factory=dict)
    is_set: bool = False
    replaced: set[Decision] = field(init=False)

    def __post_init__(self) -> None:
        self.replaced = {decision for decision, kernel in self.chosen.items() if kernel != PLAIN}

    def kernel(self, operation: str, dtype: torch.dtype) -> str:
        """The kernel that computes an operation."""
        return self.chosen.get((operation, dtype), PLAIN)

    def add(self, decided: Mapping[Decision, str]) -> None:
        """Take these decisions from here on."""
        self.chosen |= decided
        self.__post_init__()


# "plain", a file, kernels by name or operation, or such choices as they are; None: none set
Request = str | Path | Mapping[str, str] | KernelChoices | None


def is_replaced(operation: str, dtype: torch.dtype) -> bool:
    """Whether another kernel computes an operation in place of torch's own call."""
    return (operation, dtype) in active().replaced


def name(decision: Decision) -> str:
    """A decision as text: "linear prefill, float32"."""
    operation, dtype = decision
    return f"{operation}, {str(dtype).removeprefix('torch.')}"


current: KernelChoices | None = None  # None until ZOO_KERNELS is read


def active() -> KernelChoices:
    """The kernels of this process. Raises NotAvailable or MalformedError for a ZOO_KERNELS that cannot be read."""
    global current
    if current is None:
        current = _read(os.environ.get(VARIABLE) or None)
    return current


def use(setting: Request) -> None:
    """Start over with "plain", a file that `save` wrote, or kernels by name or operation; None: without any decision,
    and with zoo.kernels free to decide.

    A model that is already compiled keeps its kernels. Raises NotAvailable for a file that cannot be read,
    MalformedError for one that holds something else.
    """
    global current
    current = _read(setting)


@contextmanager
def using(setting: Request) -> Iterator[KernelChoices]:
    """`use` inside a with statement: the earlier kernels are back afterwards."""
    global current
    before = current
    use(setting)
    try:
        yield active()
    finally:
        current = before


def choices() -> dict[str, str]:
    """The kernel of each operation and dtype that is set or decided, by name: {"linear prefill, float32": "onednn"}."""
    return as_text(active().chosen)


def save(path: str | Path) -> None:
    """Write `choices` to a file for ZOO_KERNELS. Raises NotAvailable where it cannot be written."""
    write(Path(path), active().chosen)


def write(path: Path, chosen: Mapping[Decision, str], **facts: Any) -> None:
    """Write kernels to a file, whole or not at all, with `facts` beside them."""
    document = {"schema_version": SCHEMA_VERSION, **facts, "kernels": as_text(chosen)}
    write_file(path, (json.dumps(document, indent=2) + "\n").encode())


def read(path: Path) -> tuple[dict[Decision, str], dict[str, Any]]:
    """The kernels in a file, and all that it holds. Raises OSError where it cannot be read, MalformedError for one that
    `write` did not write."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MalformedError(f"{path}: not JSON: {error}") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION or not isinstance(document.get("kernels"), dict):
        older = "; it has classes of sizes, which were given up: write a new one" if version == 1 else ""
        raise MalformedError(f"{path}: not a file of kernels of schema_version {SCHEMA_VERSION}{older}")
    return parse(document["kernels"], str(path)), document


def as_text(chosen: Mapping[Decision, str]) -> dict[str, str]:
    """Kernels by the names of decisions."""
    return dict(sorted((name(decision), kernel) for decision, kernel in chosen.items()))


def parse(named: Mapping[str, str], where: str) -> dict[Decision, str]:
    """Kernels by the names of decisions, or by operations in all their dtypes. Raises MalformedError, which says
    `where`, for an operation, a dtype or a kernel that there is not."""
    chosen: dict[Decision, str] = {}
    for given, kernel in sorted(named.items()):  # an operation before its dtypes
        operation, _, dtype = given.partition(", ")
        if operation not in OPERATIONS:
            raise MalformedError(f"{where}: {unknown('operation', operation, OPERATIONS)}")
        dtypes = {str(each).removeprefix("torch."): each for each in OPERATIONS[operation].dtypes}
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
