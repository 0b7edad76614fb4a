"""The ceilings: each kernel does the stated amount of work, and the best kernel of a kind is used."""

from __future__ import annotations

import pytest
import torch

from benchmarks.measure import ceilings
from benchmarks.measure.ceilings import (
    MATRIX_WIDTH,
    SIDES,
    best,
    kernels,
    matmul_kernels,
    measured_device,
    reading_kernels,
)
from benchmarks.measure.runners import Results, ThroughputConfig
from benchmarks.measure.throughput_rows import ceiling_rows
from benchmarks.measure.timing import Samples
from tests.benchmarks.fakes import Clock, Ticking

CPU = torch.device("cpu")
SMALL = 64 * 4 * MATRIX_WIDTH


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "BUFFER_BYTES", SMALL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_reading_kernel_reads_the_whole_buffer(dtype: torch.dtype) -> None:
    """The buffer is all ones: its sum is the number of elements, and each element of the product is the length of a
    row."""
    found = {(kernel.name, kernel.dtype): kernel for kernel in reading_kernels(CPU, dtype)}
    assert {kernel.amount for kernel in found.values()} == {SMALL}
    assert float(found["sum", torch.float32].run()) == SMALL / 4  # type: ignore[arg-type]
    product = found["matrix x vector", torch.float32].run()
    assert isinstance(product, torch.Tensor)
    assert product.shape == (1, SMALL / 4 / MATRIX_WIDTH)
    assert set(product.flatten().tolist()) == {float(MATRIX_WIDTH)}
    assert ("matrix x vector", dtype) in found


def test_the_buffer_takes_at_most_a_share_of_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "free_memory", lambda device: SMALL)
    assert reading_kernels(CPU, torch.float32)[0].amount == SMALL // ceilings.MEMORY_PARTS


@pytest.mark.parametrize(("seconds", "side"), [(1e-6, SIDES[1]), (1.0, SIDES[0])])
def test_matrices_grow_until_a_product_takes_long(seconds: float, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIDES", SIDES[:2])

    class Slow(Clock):
        def __call__(self) -> float:
            self.now += seconds
            return self.now

    plain, linear = matmul_kernels(CPU, torch.float32, Slow())
    assert plain.name == f"matmul {side}"
    assert plain.amount == linear.amount == 2 * side**3


def test_the_fastest_kernel_of_each_kind_is_the_ceiling() -> None:
    found = kernels(CPU, torch.float32, Ticking())
    samples: Samples = {kernel.key: [2.0, 1.0, 4.0] for kernel in found}
    fast = next(kernel for kernel in found if kernel.name == "max")
    samples[fast.key] = [0.5, 0.25, 1.0]
    made = ceiling_rows(Results(ThroughputConfig((), threads=3), samples=samples, kernels=found))
    top = best(made, "bandwidth")
    assert top is not None
    assert (top["kernel"], top["median"], top["min"], top["max"]) == ("max", 2 * SMALL, SMALL, 4 * SMALL)
    device = measured_device(made)
    assert device is not None
    assert (device.bandwidth, device.flops) == (2 * SMALL, SIDES[0] ** 3)


def test_a_kernel_that_was_not_timed_has_no_row_and_half_a_machine_no_roofline() -> None:
    found = kernels(CPU, torch.float32, Ticking())
    samples: Samples = {kernel.key: [1.0] for kernel in found if kernel.kind == "bandwidth"}
    made = ceiling_rows(Results(ThroughputConfig(()), samples=samples, kernels=found))
    assert {row["kind"] for row in made} == {"bandwidth"}
    assert measured_device(made) is None
