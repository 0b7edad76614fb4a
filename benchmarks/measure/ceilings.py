"""Ceilings of this machine, its read bandwidth and arithmetic rate, measured in turns with the models.

The read bandwidth is the best of several kernels that read a buffer far larger than any cache and write almost nothing.
The arithmetic rate is the best of two square matrix products in the dtype of the models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.analytic.roofline import Device
from benchmarks.measure.timing import Agree, Clock, Samples, Task, measure
from benchmarks.output.report import Row
from zoo.core.devices import free_memory
from zoo.core.ops.linear import linear
from zoo.units import dtype_name

BUFFER_BYTES = 2**30  # bytes that each kernel reads, if memory allows
MEMORY_PARTS = 4  # the buffer takes at most 1 / MEMORY_PARTS of the free memory
MATRIX_WIDTH = 4096  # width of the buffer as a matrix in a matrix-vector product
MAX_PRODUCT_SECONDS = 0.1
SIDES = (512, 1024, 2048, 4096, 8192)  # sides of square matrices; the largest product within the limit is used


@dataclass(frozen=True)
class Kernel:
    """A function that reads `amount` bytes (kind "bandwidth") or computes `amount` FLOPs (kind "matmul")."""

    kind: str
    name: str
    dtype: torch.dtype
    amount: int
    run: Callable[[], object]

    @property
    def key(self) -> tuple[str, ...]:
        """The key of the kernel's samples."""
        return ("ceiling", self.kind, self.name, dtype_name(self.dtype))


def kernels(
    device: torch.device, dtype: torch.dtype, clock: Clock, compiled: bool = False, agree: Agree = float
) -> list[Kernel]:
    """Returns all kernels, ready to run. `compiled` adds the fastest reader, for runs with compiled models.

    `clock` and `agree` are passed to `measure`.
    """
    return [*reading_kernels(device, dtype, compiled), *matmul_kernels(device, dtype, clock, agree)]


def reading_kernels(device: torch.device, dtype: torch.dtype, compiled: bool = False) -> list[Kernel]:
    """Returns kernels that read the same buffer: its sum, maximum, row sums, and a matrix-vector product with it."""
    free = free_memory(device)
    size = BUFFER_BYTES if free is None else min(BUFFER_BYTES, free // MEMORY_PARTS)
    row = 4 * MATRIX_WIDTH
    # torch.ones writes every page: pages that were never written would all share one page of zeros.
    buffer = torch.ones(size // row * row // 4, device=device)
    runs: dict[tuple[str, torch.dtype], Callable[[], object]] = {("sum", torch.float32): buffer.sum}
    runs["max", torch.int32] = buffer.view(torch.int32).amax
    for each in (torch.float32, dtype):
        matrix = buffer.view(each).view(-1, MATRIX_WIDTH)
        runs["matrix x vector", each] = partial(linear, torch.ones_like(matrix[:1]), matrix)
    if compiled:
        matrix = buffer.view(-1, MATRIX_WIDTH)
        summed = torch.compile(lambda rows: rows.sum(-1), dynamic=False)
        summed(matrix)  # the first call compiles it
        runs["sums of rows, compiled", torch.float32] = partial(summed, matrix)
    return [Kernel("bandwidth", name, each, buffer.nbytes, run) for (name, each), run in runs.items()]


def matmul_kernels(device: torch.device, dtype: torch.dtype, clock: Clock, agree: Agree = float) -> list[Kernel]:
    """Returns two kernels for one square product, as large as MAX_PRODUCT_SECONDS allows."""
    for side in SIDES:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        runs = {"matmul": partial(torch.matmul, a, b), "linear": partial(linear, a, b)}
        found = [Kernel("matmul", f"{name} {side}", dtype, 2 * side**3, run) for name, run in runs.items()]
        samples = Samples()
        measure([Task.ready((), runs["matmul"])], samples, repetitions=3, max_warmups=0, clock=clock, agree=agree)
        if 8 * min(samples[()]) > MAX_PRODUCT_SECONDS:  # the next side takes 8 x as long
            break
    return found


def best(rows: Sequence[Row], kind: str) -> Row | None:
    """Returns the row of the fastest kernel of a kind; None if there is no row of this kind."""
    return max((row for row in rows if row["kind"] == kind), key=lambda row: row["median"], default=None)


def measured_device(rows: Sequence[Row]) -> Device | None:
    """Returns this machine as a device with a roofline; None unless both kinds of kernel were measured."""
    bandwidth, flops = best(rows, "bandwidth"), best(rows, "matmul")
    return Device("this machine", flops["median"], bandwidth["median"]) if bandwidth and flops else None
