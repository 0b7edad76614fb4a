"""Compiling a model: a function for each distinct layer, which every layer equal to it calls with its own weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from zoo.cache import Slot
from zoo.errors import NotAvailable
from zoo.step import Step

LayerPass = Callable[[nn.Module, Tensor, Step, Slot], Tensor]
HeadPass = Callable[[Any, Tensor], Tensor]
F = TypeVar("F", bound=Callable[..., Any])
HINT = 1024  # keys of a lone token, where the compiler asks what is worth doing


def layer_pass(layer: nn.Module, x: Tensor, step: Step, slot: Slot) -> Tensor:
    """A layer on its input (b, t, dim) -> (b, t, dim)."""
    out: Tensor = layer(x, step, slot)
    return out


def compiled(function: F, device: torch.device, **options: Any) -> F:
    """`function` compiled for every length at once, apart from whatever else is compiled of it."""
    if device.type == "cpu":
        find_compiler()
    ours: dict[str, Any] = {"dynamic": True, "fullgraph": True, "isolate_recompiles": True, "options": OPTIONS}
    return cast(F, torch.compile(function, **(ours | options)))


def _guards(entries: Sequence[Any]) -> list[bool]:
    """Which of the facts that compiled code relies on are checked on every call: neither modules, which are told apart
    by their specs, nor what is global, such as functions, which stays as it is. To look at them all again would cost a
    tenth of a millisecond a layer."""
    own = torch.compiler.skip_guard_on_all_nn_modules_unsafe(entries)
    return [kept and not entry.is_global for kept, entry in zip(own, entries, strict=True)]


# A product and the sum it goes into are rounded once, in one instruction: sums over matrices are 1.05 times as fast.
OPTIONS = {"guard_filter_fn": _guards, "cpp.enable_floating_point_contract_flag": "fast"}


def own_lengths(step: Step, new: int) -> None:
    """Tell the compiler which lengths of a step of `new` tokens are of their own. It takes equal ones for one and the
    same, and would compile anew as soon as two differ that were equal by chance.

    How many keys a lone token reads on the CPU it is not told at all: it would ask whether they are one, more than
    4,096, or as many as there is room for, and compile anew each time that the answer changes. (A static slot's are
    as many always.)
    """
    from torch._dynamo.decorators import mark_unbacked, maybe_mark_dynamic

    for view in step.views.values():
        if new == 1 and view.mask is None and view.keys.device.type == "cpu":
            mark_unbacked(view.keys, 0, hint_override=HINT)
        else:
            maybe_mark_dynamic(view.keys, 0)
            maybe_mark_dynamic(view.write, 0)


def find_compiler() -> None:
    """Raise NotAvailable unless there is the C++ compiler that code for the CPU needs."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise NotAvailable(
            "compile() needs a C++ compiler, and none is found: install g++, or name one in CXX"
        ) from None
