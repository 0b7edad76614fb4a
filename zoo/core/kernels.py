"""Which kernel computes an operation: chosen by measuring on the machine at hand.

Every operation has a plain kernel: the call that torch itself offers. Where another kernel computes the same, the two
are timed in turns when a class of sizes first comes up, and the other one is chosen if it is clearly faster. So nothing
is tuned to one processor, and nothing is slower than plain torch. The environment variable ZOO_KERNELS, or `use`, sets
the choice:

    ZOO_KERNELS=plain    torch's own calls, nothing is measured
    ZOO_KERNELS=FILE     as in a file that `save` wrote; a class that it does not name is plain

Choices change speed and, since kernels add up in different orders, the last bits of results. With the same file a run
repeats bit by bit on one machine.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from zoo.core import inductor, processes
from zoo.errors import MalformedError, NotAvailable, unknown

PLAIN = "plain"
VARIABLE = "ZOO_KERNELS"
SCHEMA_VERSION = 1


class Operation(NamedTuple):
    """The `kernel` that may compute an operation instead of the plain one, and the names of a class's `sizes`."""

    kernel: str
    sizes: tuple[str, ...]


OPERATIONS = {
    # float32 matrix products: oneDNN instead of the BLAS library that torch was built with
    "linear": Operation("onednn", ("rows", "weights")),
    # prefill: a block of queries at a time, its scores in memory, instead of torch's SDPA
    "attention": Operation("blocks", ("heads per key", "width", "new", "keys", "masked")),
    # compiled single-token decode: a reduction that Inductor compiles, instead of the library's product
    "decode linear": Operation("gemv", ("rows",)),
    # the same for scores and weighted values
    "decode attention": Operation("reduction", ("heads per key", "width")),
}
MAX_CLASS_SECONDS, MAX_PROCESS_SECONDS = 0.05, 0.3  # of measuring: one class of sizes, and all of them
MAX_COMPILED_SECONDS = 0.5  # the same for a class of compiled code, whose compilation takes seconds
MIN_TURNS, MAX_TURNS = 3, 9
MAX_TIME_RATIO = 0.95  # of the plain kernel's time, for a kernel to win a turn
MIN_TURNS_WON = 2 / 3  # of the turns, for a kernel to be chosen
COLD_BYTES = 64 * 2**20  # of operands in a turn whose kernels must read them from memory, not from a cache

SizeClass = tuple[str, torch.dtype, tuple[int, ...], int]  # (operation, dtype, sizes, threads)
Kernel = Callable[..., object]
Request = str | Path | Mapping[str, str] | None  # "plain", a file, kernels by operation or class; None to measure


class Trial(NamedTuple):
    """Two calls that compute the same, to be timed in turns."""

    plain: Kernel
    other: Kernel

    @classmethod
    def over(cls, operands: Sequence[tuple[Any, ...]], *kernels: Kernel, compiled: bool = False) -> Trial:
        """Two kernels, each called with one tuple of operands after another."""

        def run(kernel: Kernel) -> None:
            for each in operands:
                kernel(*each)

        return cls(*(partial(run, inductor.compile_dynamic(kernel) if compiled else kernel) for kernel in kernels))


MakeTrial = Callable[[], Trial]


@dataclass
class KernelChoices:
    """The kernels that a process chooses.

    `requested`: what a file or the caller asked for, by class or by operation; None to measure. `chosen`: the kernel of
    each class that came up. `seconds`: what measuring took so far. `pending`: the trials of classes that came up while
    a compiler traced, when nothing can be measured.
    """

    requested: Mapping[str, str] | None = None
    chosen: dict[SizeClass, str] = field(default_factory=dict)
    seconds: float = 0.0
    pending: dict[SizeClass, MakeTrial] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether every operation is computed by its plain kernel, whatever its sizes."""
        return self.requested is not None and all(kernel == PLAIN for kernel in self.requested.values())

    def pick(self, operation: str, dtype: torch.dtype, sizes: tuple[int, ...], trial: MakeTrial) -> bool:
        """Whether another kernel than the plain one computes an operation; measured by `trial` if nothing is requested.

        `sizes` are the ones that OPERATIONS names; the number of threads is added to them.
        """
        key = (operation, dtype, sizes, torch.get_num_threads())
        kernel = self.chosen.get(key)
        if kernel is None:
            kernel = self._choose(key, trial)
        return kernel is not PLAIN and kernel != PLAIN

    def pick_traced(self, operation: str, dtype: torch.dtype, sizes: tuple[int, ...], trial: MakeTrial) -> bool:
        """The same while a compiler traces: a class without a choice gets the other kernel until `measure_pending`."""
        key = (operation, dtype, sizes, torch.get_num_threads())
        kernel = self.chosen.get(key) or self._requested(key)
        if kernel is None:
            self.pending[key] = trial
            return True
        self.chosen[key] = kernel
        return kernel != PLAIN

    def measure_pending(self) -> bool:
        """Choose for the classes that came up while a compiler traced. True where a plain kernel won: code has been
        compiled with the other one."""
        changed = False
        while self.pending and _can_measure():
            key, trial = self.pending.popitem()
            self.chosen[key] = _agreed(key, partial(_is_faster_compiled, trial))
            changed = changed or self.chosen[key] == PLAIN
        return changed

    def _requested(self, key: SizeClass) -> str | None:
        if self.requested is None:
            return None
        return self.requested.get(_name(key)) or self.requested.get(key[0]) or PLAIN

    def _choose(self, key: SizeClass, trial: MakeTrial) -> str:
        kernel = self._requested(key)
        if kernel is None:
            if not _can_measure():
                return PLAIN  # for this call; a later one may measure
            kernel = _agreed(key, lambda: self._wins(trial))
        self.chosen[key] = kernel
        return kernel

    def _wins(self, trial: MakeTrial) -> bool:
        began = perf_counter()
        wins = self.seconds < MAX_PROCESS_SECONDS and _is_faster(trial())
        self.seconds += perf_counter() - began
        return wins


def _agreed(key: SizeClass, wins: Callable[[], bool]) -> str:
    """The kernel of a class, by whether the other one wins. Of several processes that divide a model one measures: what
    all of them compute must be equal to the last bit, or their routers would choose different experts."""
    return processes.agreed(_name(key), lambda: OPERATIONS[key[0]].kernel if wins() else PLAIN)


def _is_faster_compiled(trial: MakeTrial) -> bool:
    return _is_faster(trial(), MAX_COMPILED_SECONDS)


def _can_measure() -> bool:
    """Not while a compiler traces or a dispatch mode intercepts calls, not beside other threads of the program, and not
    in several processes that cannot agree."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and threading.current_thread() is threading.main_thread()
        and processes.can_agree()
    )


def _is_faster(trial: Trial, seconds: float = MAX_CLASS_SECONDS) -> bool:
    """Whether the other kernel is clearly faster than the plain one, measured for at most so many seconds."""
    turns = won = 0
    for run in trial:
        run()  # kernels are made, and code is compiled, on the first call
    began = perf_counter()
    while turns < MAX_TURNS and perf_counter() - began < seconds:
        plain, other = _time(trial.plain), _time(trial.other)
        won += other <= MAX_TIME_RATIO * plain
        turns += 1
        if turns >= MIN_TURNS and won in (0, turns):
            break
    return turns >= MIN_TURNS and won >= MIN_TURNS_WON * turns


def _time(run: Kernel) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def _name(key: SizeClass) -> str:
    """A class as text: "linear, float32, rows 1, weights 1048576, threads 2"."""
    operation, dtype, sizes, threads = key
    named = [f"{name} {size}" for name, size in zip(OPERATIONS[operation].sizes, sizes, strict=True)]
    return ", ".join([operation, str(dtype).removeprefix("torch."), *named, f"threads {threads}"])


def bucket(number: int, base: int = 4) -> int:
    """The largest power of `base`, 4 or 16, up to a number: sizes of one bucket are one class."""
    bits = number.bit_length() - 1
    return 1 << bits - bits % (base.bit_length() - 1)


_active: KernelChoices | None = None


def active() -> KernelChoices:
    """The choices of this process. Raises NotAvailable or MalformedError for a ZOO_KERNELS that cannot be read."""
    global _active
    if _active is None:
        _active = KernelChoices(_read(os.environ.get(VARIABLE)))
    return _active


def use(setting: Request) -> None:
    """Start over with "plain", a file that `save` wrote, kernels by operation or class, or None to measure.

    A model that is already compiled keeps its kernels. Raises NotAvailable for a file that cannot be read,
    MalformedError for one that holds something else.
    """
    global _active
    _active = KernelChoices(_read(setting))


@contextmanager
def using(setting: Request) -> Iterator[KernelChoices]:
    """`use` inside a with statement: the earlier choices are back afterwards."""
    global _active
    before = _active
    use(setting)
    try:
        yield active()
    finally:
        _active = before


def choices() -> dict[str, str]:
    """The kernel of each class of sizes that came up so far, by the class's name."""
    return dict(sorted((_name(key), kernel) for key, kernel in active().chosen.items()))


def save(path: str | Path) -> None:
    """Write the choices so far to a file for ZOO_KERNELS. Raises NotAvailable where it cannot be written."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, "kernels": choices()}, indent=2)
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise NotAvailable(f"cannot write {path}: {error.strerror}") from error


def _read(setting: Request) -> Mapping[str, str] | None:
    """The requested kernels, if every operation and kernel in them exists."""
    if setting is None or setting == "":
        return None
    if setting == PLAIN:
        return {}
    where, requested = ("use", setting) if isinstance(setting, Mapping) else (str(setting), _load(setting))
    for name, kernel in requested.items():
        operation = name.partition(",")[0]
        if operation not in OPERATIONS:
            raise MalformedError(f"{where}: {unknown('operation', operation, OPERATIONS)}")
        known = (PLAIN, OPERATIONS[operation].kernel)
        if kernel not in known:
            raise MalformedError(f"{where}: {unknown(f'kernel of {operation}', str(kernel), known)}")
    return requested


def _load(path: str | Path) -> Mapping[str, str]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise NotAvailable(f"{VARIABLE}={path}: neither {PLAIN!r} nor a file: {error.strerror}") from error
    except ValueError as error:
        raise MalformedError(f"{VARIABLE}={path}: not JSON: {error}") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION or not isinstance(document.get("kernels"), dict):
        raise MalformedError(f"{VARIABLE}={path}: not a file of choices of schema_version {SCHEMA_VERSION}")
    return document["kernels"]
