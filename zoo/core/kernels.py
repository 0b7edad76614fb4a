"""Which kernel computes an operation: chosen by measuring on the machine at hand.

Every operation has a plain form: the call that torch itself offers. Where another kernel computes the same, the two
take turns when a class of sizes first comes up, and the other one is taken if it wins clearly. So nothing is tuned to
one processor, and nothing is slower than plain torch. The environment variable ZOO_KERNELS, or `use`, sets the choice:

    ZOO_KERNELS=plain    torch's own calls, nothing is measured
    ZOO_KERNELS=FILE     as in a file that `save` wrote; a class that it does not name is plain

Choices change speed and, since kernels add up in different orders, the last bits of results. With the same file a run
repeats bit by bit on one machine.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch

from zoo.errors import MalformedError, NotAvailable, unknown

PLAIN = "plain"
VARIABLE = "ZOO_KERNELS"
SCHEMA_VERSION = 1


class Operation(NamedTuple):
    """What may be computed by `kernel` instead of the plain one, and what the sizes in its classes are."""

    kernel: str
    sizes: tuple[str, ...]


OPERATIONS = {
    # float32 matrix products: oneDNN instead of the BLAS library that torch was built with
    "linear": Operation("onednn", ("rows", "weights")),
    # several tokens: scores in memory, a block of queries at a time, instead of torch's SDPA
    "attention": Operation("blocks", ("heads per key", "width", "new", "keys", "masked")),
    # compiled, one token: a reduction that Inductor compiles, instead of the library's product
    "decode linear": Operation("gemv", ("rows",)),
    # compiled, one token: the same for scores and weighted values
    "decode attention": Operation("reduction", ("heads per key", "width")),
}
CLASS_SECONDS, PROCESS_SECONDS = 0.05, 0.3  # spent at most on one class of sizes, and on all of them
COMPILED_SECONDS = 0.5  # spent at most on a class of compiled code, whose compilation takes seconds
MIN_TURNS, MAX_TURNS = 3, 9
MARGIN = 0.95  # a kernel wins a turn if it takes at most this part of the plain one's time
SHARE = 2 / 3  # of the turns it must win
COLD_BYTES = 64 * 2**20  # gone through in each turn by what must find its operands in memory, not in a cache

Class = tuple[str, torch.dtype, tuple[int, ...], int]  # (operation, dtype, sizes, threads)
Run = Callable[[], object]


class Race(NamedTuple):
    """Two calls that compute the same, to be timed in turns."""

    plain: Run
    other: Run


@dataclass
class Kernels:
    """The choices of a process.

    `said`: what a file or the caller asked for, by class or by operation; None to measure. `chosen`: the choice for
    each class that came up. `seconds`: what measuring took so far. `pending`: classes that came up while a compiler was
    tracing, when nothing can be measured, with what to measure.
    """

    said: Mapping[str, str] | None = None
    chosen: dict[Class, str] = field(default_factory=dict)
    seconds: float = 0.0
    pending: dict[Class, Callable[[], Race]] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether no operation is ever computed by another kernel than the plain one."""
        return self.said is not None and all(kernel == PLAIN for kernel in self.said.values())

    def pick(self, operation: str, dtype: torch.dtype, sizes: tuple[int, ...], race: Callable[[], Race]) -> bool:
        """Whether another kernel than the plain one computes an operation; the `race` decides where nobody has said so.

        `sizes` are what OPERATIONS says they are; the number of threads is added to them.
        """
        key = (operation, dtype, sizes, torch.get_num_threads())
        found = self.chosen.get(key)
        if found is None:
            found = self._decide(key, race)
        return found is not PLAIN and found != PLAIN

    def pick_traced(self, operation: str, dtype: torch.dtype, sizes: tuple[int, ...], race: Callable[[], Race]) -> bool:
        """The same while a compiler traces. What is not decided yet is the other kernel, until `settle`."""
        key = (operation, dtype, sizes, torch.get_num_threads())
        found = self.chosen.get(key) or self._said(key)
        if found is None:
            self.pending[key] = race
            return True
        self.chosen[key] = found
        return found != PLAIN

    def settle(self) -> bool:
        """Decide what came up while a compiler traced. True where a plain kernel won: code was compiled otherwise."""
        changed = False
        while self.pending and _can_measure():
            key, race = self.pending.popitem()
            self.chosen[key] = OPERATIONS[key[0]].kernel if _wins(race(), COMPILED_SECONDS) else PLAIN
            changed = changed or self.chosen[key] == PLAIN
        return changed

    def _said(self, key: Class) -> str | None:
        if self.said is None:
            return None
        return self.said.get(_name(key)) or self.said.get(key[0]) or PLAIN

    def _decide(self, key: Class, race: Callable[[], Race]) -> str:
        found = self._said(key)
        if found is None:
            if not _can_measure():
                return PLAIN  # now; another time it may be measured
            began = perf_counter()
            wins = self.seconds < PROCESS_SECONDS and _wins(race())
            found = OPERATIONS[key[0]].kernel if wins else PLAIN
            self.seconds += perf_counter() - began
        self.chosen[key] = found
        return found


def _can_measure() -> bool:
    """Not while a compiler traces or a mode watches what is called, not beside other threads of the program, and not
    where several processes must agree."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and threading.current_thread() is threading.main_thread()
        and not (torch.distributed.is_available() and torch.distributed.is_initialized())
    )


def _wins(race: Race, seconds: float = CLASS_SECONDS) -> bool:
    """Whether the other kernel is clearly faster than the plain one, as far as that can be seen in so many seconds."""
    turns = won = 0
    for run in race:
        run()  # kernels are made, and code is compiled, on the first call
    began = perf_counter()
    while turns < MAX_TURNS and perf_counter() - began < seconds:
        plain, other = _time(race.plain), _time(race.other)
        won += other <= MARGIN * plain
        turns += 1
        if turns >= MIN_TURNS and won in (0, turns):
            break
    return turns >= MIN_TURNS and won >= SHARE * turns


def _time(run: Run) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def _name(key: Class) -> str:
    """A class in words: "linear, float32, rows 1, weights 1048576, threads 2"."""
    operation, dtype, sizes, threads = key
    said = [f"{name} {size}" for name, size in zip(OPERATIONS[operation].sizes, sizes, strict=True)]
    return ", ".join([operation, str(dtype).removeprefix("torch."), *said, f"threads {threads}"])


def bucket(number: int, base: int = 4) -> int:
    """The power of `base`, 4 or 16, at or below a number: sizes of one bucket are one class."""
    bits = number.bit_length() - 1
    return 1 << bits - bits % (base.bit_length() - 1)


_active: Kernels | None = None


def active() -> Kernels:
    """The choices of this process. Raises NotAvailable or MalformedError for a ZOO_KERNELS that cannot be read."""
    global _active
    if _active is None:
        _active = Kernels(_read(os.environ.get(VARIABLE)))
    return _active


def use(setting: str | Path | Mapping[str, str] | None) -> None:
    """Begin anew: "plain", a file that `save` wrote, choices by operation or class, or None to measure.

    A model that is compiled already keeps the kernels it was compiled with. Raises NotAvailable for a file that is not
    there, MalformedError for one that holds something else.
    """
    global _active
    _active = Kernels(_checked(setting, "use") if isinstance(setting, Mapping) else _read(setting))


@contextmanager
def using(setting: str | Path | Mapping[str, str] | None) -> Iterator[Kernels]:
    """`use` for a while: what was chosen before is back afterwards."""
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


def _read(setting: str | Path | None) -> Mapping[str, str] | None:
    if setting is None or setting == "":
        return None
    if setting == PLAIN:
        return {}
    try:
        found = json.loads(Path(setting).read_text(encoding="utf-8"))
    except OSError as error:
        raise NotAvailable(f"{VARIABLE}={setting}: neither {PLAIN!r} nor a file: {error.strerror}") from error
    except ValueError as error:
        raise MalformedError(f"{VARIABLE}={setting}: not JSON: {error}") from error
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION or not isinstance(found.get("kernels"), dict):
        raise MalformedError(f"{VARIABLE}={setting}: not a file of choices of schema_version {SCHEMA_VERSION}")
    return _checked(found["kernels"], str(setting))


def _checked(said: Mapping[str, str], where: str) -> Mapping[str, str]:
    """`said`, if every operation and kernel in it exists."""
    for name, kernel in said.items():
        operation = name.partition(",")[0]
        if operation not in OPERATIONS:
            raise MalformedError(f"{where}: {unknown('operation', operation, OPERATIONS)}")
        known = (PLAIN, OPERATIONS[operation].kernel)
        if kernel not in known:
            raise MalformedError(f"{where}: {unknown(f'kernel of {operation}', str(kernel), known)}")
    return said
