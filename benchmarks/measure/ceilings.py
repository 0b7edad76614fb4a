"""What this machine can do at most, measured between the rows that are held against it: reading memory, multiplying.

The read bandwidth is the best of several kernels that read a buffer far larger than any cache and write next to
nothing; the arithmetic rate the best of two square products in the dtype of the models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.analytic.roofline import Device
from benchmarks.measure.timing import Clock, Samples, Task, rate
from zoo.core.devices import free_memory
from zoo.core.linear import linear
from zoo.units import dtype_name

Row = dict[str, Any]

BUFFER = 2**30  # bytes read by each kernel, where there is room
SHARE = 4  # of free memory the buffer takes at most one part in so many
WIDTH = 4096  # of the matrix that a buffer is in a matrix-vector product
SIDES = (512, 1024, 2048, 4096, 8192)  # of the square matrices: the largest that does not take longer than
LONG = 0.1  # seconds
CEILING = "ceiling"


@dataclass(frozen=True)
class Kernel:
    """Reads or multiplies; `amount` is in bytes or FLOPs."""

    kind: str
    name: str
    dtype: torch.dtype
    amount: int
    run: Callable[[], object]

    @property
    def key(self) -> tuple[str, ...]:
        """Its name among the samples."""
        return (CEILING, self.kind, self.name, dtype_name(self.dtype))


def kernels(device: torch.device, dtype: torch.dtype, clock: Clock, compiled: bool = False) -> list[Kernel]:
    """All of them, ready to run; with the `compiled` one, which reads fastest, where compiled models are measured."""
    return [*reading(device, dtype, compiled), *multiplying(device, dtype, clock)]


def reading(device: torch.device, dtype: torch.dtype, compiled: bool = False) -> list[Kernel]:
    """Kernels that read the same buffer: as sums, as a maximum, and as a matrix that a vector is multiplied with."""
    free = free_memory(device)
    size = BUFFER if free is None else min(BUFFER, free // SHARE)
    row = 4 * WIDTH
    buffer = torch.ones(size // row * row // 4, device=device)  # written once: pages that never were share one of zeros
    dtypes = dict.fromkeys([torch.float32, dtype])
    runs: list[tuple[str, torch.dtype, Callable[[], object]]] = [
        ("sum", torch.float32, buffer.sum),
        ("max", torch.int32, buffer.view(torch.int32).amax),
        *(("matrix x vector", each, _matrix_vector(buffer.view(each).view(-1, WIDTH))) for each in dtypes),
        *([("sums of rows, compiled", torch.float32, _row_sums(buffer.view(-1, WIDTH)))] if compiled else []),
    ]
    return [Kernel("bandwidth", name, each, buffer.nbytes, run) for name, each, run in runs]


def _matrix_vector(matrix: Tensor) -> Callable[[], object]:
    vector = torch.ones(1, matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    return lambda: linear(vector, matrix)


def _row_sums(matrix: Tensor) -> Callable[[], object]:
    summed = torch.compile(lambda rows: rows.sum(-1), dynamic=False)
    summed(matrix)  # compiles it
    return lambda: summed(matrix)


def multiplying(device: torch.device, dtype: torch.dtype, clock: Clock) -> list[Kernel]:
    """Two ways to the same square product, of the largest matrices that take no longer than LONG."""
    for side in SIDES:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        found = [
            Kernel("matmul", f"matmul {side}", dtype, 2 * side**3, lambda a=a, b=b: a @ b),  # type: ignore[misc]
            Kernel("matmul", f"linear {side}", dtype, 2 * side**3, lambda a=a, b=b: linear(a, b)),  # type: ignore[misc]
        ]
        if 8 * min(_seconds(found[0], clock) for _ in range(3)) > LONG:  # the next side takes eight times as long
            break
    return found


def _seconds(kernel: Kernel, clock: Clock) -> float:
    start = clock()
    kernel.run()
    return clock() - start


def tasks(kernels: Sequence[Kernel]) -> list[Task]:
    """To be timed between others."""

    def ready(kernel: Kernel) -> Callable[[], Callable[[], None]]:
        def run() -> None:
            kernel.run()

        return lambda: run

    return [Task(kernel.key, ready(kernel)) for kernel in kernels]


def rows(kernels: Sequence[Kernel], samples: Samples, device: torch.device, threads: int) -> list[Row]:
    """A row for each kernel that was timed: bytes or FLOPs a second."""
    return [_row(kernel, samples[kernel.key], device, threads) for kernel in kernels if samples.get(kernel.key)]


def _row(kernel: Kernel, seconds: list[float], device: torch.device, threads: int) -> Row:
    spread = rate(kernel.amount, seconds)
    return {
        "table": "ceilings",
        "kind": kernel.kind,
        "kernel": kernel.name,
        "dtype": dtype_name(kernel.dtype),
        "device": str(device),
        "threads": threads,
        "amount": kernel.amount,
        "median": spread.median,
        "std": spread.std,
        "min": spread.low,
        "max": spread.high,
        "seconds": seconds,
    }


def best(rows: Sequence[Row], kind: str) -> Row | None:
    """The fastest kernel of a kind."""
    return max((row for row in rows if row["kind"] == kind), key=lambda row: row["median"], default=None)


def measured(rows: Sequence[Row]) -> Device | None:
    """This machine as a device with a roofline, once both kinds were measured."""
    bandwidth, flops = best(rows, "bandwidth"), best(rows, "matmul")
    return Device("this machine", flops["median"], bandwidth["median"]) if bandwidth and flops else None
