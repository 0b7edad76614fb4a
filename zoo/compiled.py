"""Compiling a model: a function for each distinct layer, which every layer equal to it calls with its own weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from zoo.cache import Slot
from zoo.errors import NotAvailable
from zoo.step import Step

LayerPass = Callable[[nn.Module, Tensor, Step, Slot], Tensor]
HeadPass = Callable[[Any, Tensor], Tensor]
F = TypeVar("F", bound=Callable[..., Any])


def layer_pass(layer: nn.Module, x: Tensor, step: Step, slot: Slot) -> Tensor:
    """A layer on its input (b, t, dim) -> (b, t, dim)."""
    out: Tensor = layer(x, step, slot)
    return out


def compiled(function: F, device: torch.device, **options: Any) -> F:
    """`function` compiled for every length at once, apart from whatever else is compiled of it."""
    if device.type == "cpu":
        find_compiler()
    # Modules are told apart by their specs, which are equal here: to look at each of their parts again on every call
    # would cost a tenth of a millisecond a layer.
    kept = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    ours: dict[str, Any] = {"dynamic": True, "fullgraph": True, "isolate_recompiles": True, "options": kept}
    return cast(F, torch.compile(function, **(ours | options)))


def find_compiler() -> None:
    """Raise NotAvailable unless there is the C++ compiler that code for the CPU needs."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise NotAvailable(
            "compile() needs a C++ compiler, and none is found: install g++, or name one in CXX"
        ) from None
