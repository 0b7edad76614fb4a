"""A run of a workload that is watched and not timed: the memory it takes, the experts it hits, its products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.measure.devices import Meter
from benchmarks.measure.timing import Task
from zoo.blocks import MoE
from zoo.core.linear import ONEDNN
from zoo.model.decoder import Model


@dataclass
class Observed:
    """`peak_bytes`: weights, and the most that cache and passes took beside them; None if nobody says. `hits`: for each
    layer with experts, how many of them a pass hit, on average. `products`: (weight, rows) of each product with one."""

    peak_bytes: int | None = None
    hits: dict[int, float] = field(default_factory=dict)
    products: list[tuple[Tensor, int]] = field(default_factory=list)


def observe(task: Task, weight_bytes: int, meter: Meter, model: Model | None) -> Observed:
    """Run the task for the first time, which makes and fills its cache. Experts and products are seen of a `model` of
    the zoo that runs eagerly."""
    meter.start()
    run = task.prepare()
    products, counts = list[tuple[Tensor, int]](), dict[int, list[int]]()
    with _watching(model, products, counts) if model is not None else nullcontext():
        run()
    taken = meter.peak()
    hits = {layer: fmean(each) for layer, each in counts.items()}
    return Observed(None if taken is None else weight_bytes + taken, hits, products)


class Products(TorchFunctionMode):
    """Meanwhile, each product with a weight of the model is noted in `seen`, with the rows that it is multiplied with.
    (Attention multiplies the same way, with keys and values.)"""

    def __init__(self, model: Model, seen: list[tuple[Tensor, int]]) -> None:
        super().__init__()
        self.seen, self.weights = seen, {_memory(weight) for weight in model.parameters()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (func is F.linear or func is ONEDNN) and _memory(args[1]) in self.weights:
            x, weight = args[:2]
            self.seen.append((weight, x.numel() // x.shape[-1]))
        return func(*args, **(kwargs or {}))


def _memory(weight: Tensor) -> int:
    return weight.untyped_storage().data_ptr()


@contextmanager
def _watching(model: Model, products: list[tuple[Tensor, int]], counts: dict[int, list[int]]) -> Iterator[None]:
    """Products are seen for eager models only: a compiled one would be compiled again, with the watching in it."""
    with Products(model, products), _counting(model, counts):
        yield


@contextmanager
def _counting(model: Model, counts: dict[int, list[int]]) -> Iterator[None]:
    """Meanwhile, `counts` gets the number of distinct experts that each pass of each router chooses."""
    hooks = []
    for index, (spec, layer) in enumerate(zip(model.spec.layers, model.layers, strict=True)):
        if isinstance(spec.ffn.block, MoE):
            hits = counts.setdefault(index, [])

            def chosen(_: Any, __: Any, out: tuple[Tensor, Tensor], hits: list[int] = hits) -> None:
                hits.append(out[1].unique().numel())

            router: Any = layer.get_submodule("ffn.block.router")
            hooks.append(router.register_forward_hook(chosen))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
