"""Compiling a model: one function for each distinct layer, which every layer equal to it calls with its own weights.

torch would check on every call that no module and no global has changed since it compiled, which takes a tenth of a
millisecond a layer. For a layer that is as its spec builds it, the spec and the facts of its parameters say all that
can differ. So these guards are left out, and one look at the whole model (zoo.model.guards) takes their place. A layer
that was edited, by an adapter in place of a projection for example, is compiled apart with all of torch's guards. A
layer with hooks runs uncompiled. Whatever is changed after `compile()` is seen on the next pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from zoo.core import inductor
from zoo.core.cache import LayerCache
from zoo.core.forward_context import ForwardContext
from zoo.core.kernels import active
from zoo.errors import NotAvailable
from zoo.model.guards import Watch, has_global_hooks, has_hooks, has_opaque_parameters, is_as_built, parameter_facts

if TYPE_CHECKING:
    from zoo.model.decoder import Model

LayerPass = Callable[[nn.Module, Tensor, ForwardContext, LayerCache], Tensor]
HeadPass = Callable[[Any, Tensor], Tensor]
F = TypeVar("F", bound=Callable[..., Any])
HINT = 1024  # keys of a lone token, where the compiler asks what is worth doing
log = logging.getLogger(__name__)


def layer_pass(layer: nn.Module, x: Tensor, step: ForwardContext, slot: LayerCache) -> Tensor:
    """A layer on its input (b, t, dim) -> (b, t, dim)."""
    out: Tensor = layer(x, step, slot)
    return out


def head_pass(model: Any, x: Tensor) -> Tensor:
    """The last norm and the head: (b, t, dim) -> logits (b, t, vocab)."""
    out: Tensor = model.logits(x)
    return out


class Passes(NamedTuple):
    """What a forward pass calls: a function for each layer, and one for the head. `replayable`: no module has a hook,
    which a CUDA graph would not call."""

    layers: Sequence[LayerPass]
    head: HeadPass
    replayable: bool


class Compiled:
    """The compiled functions of a model. `options` are torch.compile's.

    `version` counts the changes of the model that were seen. Not for pickling: a copy of a model is not compiled.
    """

    def __init__(self, model: Model, options: dict[str, Any]) -> None:
        inductor.load()
        if model.embed.weight.device.type == "cpu":
            find_compiler()
        self._model, self._options = model, options
        self._functions: dict[Hashable, Callable[..., Any]] = {}
        self._passes: dict[bool, Passes] = {}
        self._watch: Watch | None = None
        self.version = 0

    def passes(self) -> Passes:
        """The functions for the model as it is now."""
        if self._watch is None or not self._watch.holds():
            self._watch, self._passes = Watch(self._model), {}
            self.version += 1
        differentiates = torch.is_grad_enabled()
        if differentiates not in self._passes:
            self._passes[differentiates] = self._choose(differentiates)
        return self._passes[differentiates]

    def settle(self) -> None:
        """After a pass: measure kernels that came up while it was traced, and compile anew what took a slower one."""
        if active().pending and active().settle():
            self._functions.clear()
            self._passes.clear()

    def fingerprint(self) -> Hashable:
        """What a CUDA graph of the model depends on: its structure, where its weights lie, and autocast."""
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        return self.version, autocast, tuple(weight.data_ptr() for weight in self._model.parameters())

    def _choose(self, differentiates: bool) -> Passes:
        model = self._model
        reference = _reference(model)
        built = dict(zip(reference.spec.layers, reference.layers, strict=True))
        layers = [
            self._function(layer_pass, (spec,), [(layer, built[spec])], differentiates)
            for spec, layer in zip(model.spec.layers, model.layers, strict=True)
        ]
        parts = [
            (getattr(model, name), getattr(reference, name)) for name in ("norm", "head" if model.head else "embed")
        ]
        head = self._function(head_pass, ("head", model.spec.norm, model.spec.tied), parts, differentiates)
        edited = sum(each is layer_pass for each in layers) + (head is head_pass)
        if edited:
            log.warning(
                "%d of %d parts of the model have hooks or tensors that torch cannot trace: these run uncompiled",
                edited,
                len(layers) + 1,
            )
        return Passes(layers, head, not edited and not has_hooks(model) and not has_global_hooks())

    def _function(
        self,
        function: F,
        spec: tuple[Hashable, ...],
        parts: Sequence[tuple[nn.Module, nn.Module]],
        differentiates: bool,
    ) -> F:
        """`function`, compiled for modules like these: each with what its spec builds."""
        modules = [module for module, _ in parts]
        if has_global_hooks() or any(has_hooks(module) or has_opaque_parameters(module) for module in modules):
            return function
        as_built = all(is_as_built(module, reference) for module, reference in parts)
        facts = tuple(parameter_facts(module, differentiates) for module in modules)
        structure = () if as_built else tuple((n, type(m)) for module in modules for n, m in module.named_modules())
        training = tuple(module.training for module in modules)
        key = (function, spec, structure, facts, training, differentiates)
        if key not in self._functions:
            self._functions[key] = compiled(function, as_built, **self._options)
        return cast(F, self._functions[key])


def _reference(model: Model) -> Model:
    """The model as its spec builds it, without memory, with one layer of each kind."""
    with torch.device("meta"):
        kinds = tuple(dict.fromkeys(model.spec.layers))
        return replace(model.spec, layers=kinds).build()


def compiled(function: F, as_built: bool = True, **options: Any) -> F:
    """`function` compiled for every length at once, apart from whatever else is compiled of it. Where the modules that
    it is given are not `as_built`, torch keeps all its guards, and calls what it cannot compile."""
    ours: dict[str, Any] = {"dynamic": True, "fullgraph": as_built, "isolate_recompiles": True}
    own = dict(GUARDS) if as_built else {}  # a copy: torch.compile takes its own entries out
    if options.get("backend", "inductor") == "inductor" and "mode" not in options:
        own |= inductor.options()
    given = {name: value for name, value in options.items() if name != "options"}
    return cast(F, torch.compile(function, **(ours | given), options=own | (options.get("options") or {}) or None))


def _guards(entries: Sequence[Any]) -> list[bool]:
    """Guards kept in compiled code: all but those on modules, which zoo.model.guards checks, and those on globals, such
    as functions, which do not change."""
    own = torch.compiler.skip_guard_on_all_nn_modules_unsafe(entries)
    return [kept and not entry.is_global for kept, entry in zip(own, entries, strict=True)]


GUARDS = {"guard_filter_fn": _guards}


def mark_dynamic_lengths(step: ForwardContext, new: int) -> None:
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
