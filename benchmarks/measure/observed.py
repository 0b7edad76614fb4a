"""Observation of one untimed run of a workload: peak memory, experts that tokens hit, and GEMMs with weights.

The GEMMs are later timed without the rest of the pass, in a task of their own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.measure.timing import Task
from weights.reference.model import removed_after
from zoo.blocks.routers import routers_of
from zoo.core.ops.linear import ONEDNN, linear
from zoo.model.module import Model


@dataclass
class Observed:
    """The observations of a run.

    `peak_bytes`: the weights, plus the peak of cache and passes; None if unknown. `hits`: {layer: mean number of
    distinct experts per pass}. `gemms`: the weight and the number of rows of x of each GEMM.
    """

    peak_bytes: int | None = None
    hits: dict[int, float] = field(default_factory=dict)
    gemms: list[tuple[Tensor, int]] = field(default_factory=list)


def observe(
    task: Task, weight_bytes: int, start_meter: Callable[[], Callable[[], int | None]], model: Model | None
) -> Observed:
    """Runs a task under a memory meter. This first run also allocates and fills the task's cache.

    `model`: the zoo's eager model, whose experts and GEMMs are recorded; None to record neither. Recording a compiled
    model would make it compile again.
    """
    peak = start_meter()
    run = task.prepare()
    gemms, counts = list[tuple[Tensor, int]](), dict[int, list[int]]()
    with _recording(model, gemms, counts) if model is not None else nullcontext():
        run()
    taken = peak()
    hits = {layer: fmean(each) for layer, each in counts.items()}
    return Observed(None if taken is None else weight_bytes + taken, hits, gemms)


class _Gemms(TorchFunctionMode):
    """Records the matrix products (GEMMs) with a weight of the model. Products of activations, which attention computes
    by the same function, are left out."""

    def __init__(self, model: Model, gemms: list[tuple[Tensor, int]]) -> None:
        super().__init__()
        self.gemms, self.weights = gemms, {_address(weight) for weight in model.parameters()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (func is F.linear or func is ONEDNN) and _address(args[1]) in self.weights:
            x, weight = args[:2]
            self.gemms.append((weight, x.numel() // x.shape[-1]))
        return func(*args, **(kwargs or {}))


def _address(weight: Tensor) -> int:
    return weight.untyped_storage().data_ptr()


@contextmanager
def _recording(model: Model, gemms: list[tuple[Tensor, int]], counts: dict[int, list[int]]) -> Iterator[None]:
    """Fills `gemms`, and `counts` with the number of distinct experts that each pass of each layer's router chooses."""

    def count(layer: int, router: Any, args: Any, out: tuple[Tensor, Tensor]) -> None:
        counts.setdefault(layer, []).append(out[1].unique().numel())

    routers = ((index, router) for index, layer in enumerate(model.layers) for router in routers_of(layer))
    hooks = (router.register_forward_hook(partial(count, index)) for index, router in routers)
    with removed_after(hooks), _Gemms(model, gemms):
        yield


def gemm_key(key: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the key of the samples that time only the GEMMs of the pass with this key."""
    return ("GEMMs alone", *key)


def gemm_task(key: tuple[str, ...], gemms: Sequence[tuple[Tensor, int]]) -> Task:
    """Returns the task that runs only the GEMMs of a pass, one after the other."""
    kinds = {(rows, weight.shape[-1], weight.dtype): weight.device for weight, rows in gemms}  # routers are float32
    inputs = {kind: torch.randn(kind[:2], device=device).to(kind[2]) for kind, device in kinds.items()}

    def run() -> None:
        for weight, rows in gemms:
            linear(inputs[rows, weight.shape[-1], weight.dtype], weight)

    return Task.ready(gemm_key(key), run)
