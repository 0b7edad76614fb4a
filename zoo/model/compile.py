"""Compiles a model: one function for each distinct layer, which equal layers call with their own weights.

On every call, torch would check that no module and no global has changed since compilation, which takes 0.1 ms per
layer. For a layer that is unchanged since its spec built it, the spec and the facts of its parameters determine the
code. These guards are therefore left out, and one check of the whole model (zoo.model.guards) replaces them. An edited
layer, for example one with an adapter in place of a projection, is compiled separately with all of torch's guards. A
layer with hooks runs uncompiled. Changes that are made after `compile()` take effect in the next pass.
"""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from zoo.blocks.layer import LayerOutput, run_layer
from zoo.core import inductor
from zoo.core.cache import Cache
from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.kernel_choice import decide_for
from zoo.model.guards import ModelGuard, has_hooks, has_opaque_parameters, is_as_built, parameter_facts

F = TypeVar("F", bound=Callable[..., Any])
WARMUP_STEPS = 3  # run before a CUDA graph is captured; they compile kernels and allocate workspaces
KEYS_HINT = 1024  # keys in single-token decode that the compiler's cost estimates assume
log = logging.getLogger(__name__)


class ForwardFunctions(NamedTuple):
    """The functions that a forward pass calls: `run_layer` for each layer, and `Model.logits`, compiled or not.
    `replayable`: a CUDA graph may replay them: no module has a hook, which a graph would skip, and no routing is
    recorded."""

    layers: Sequence[Callable[[nn.Module, Tensor, ForwardContext, LayerCache], LayerOutput]]
    head: Callable[[Any, Tensor], Tensor]
    replayable: bool


class CompiledModel:
    """The compiled functions and CUDA graphs of a zoo.model.module.Model. `options` are torch.compile's.

    A copied model does not contain it. Raises NotAvailable if the model is on the CPU and there is no C++ compiler.
    """

    def __init__(self, model: Any, options: dict[str, Any]) -> None:
        if model.embed.weight.device.type == "cpu":
            inductor.find_compiler()
        decide_for(model, getattr(model, "group", None), compiled=True)
        # The CUDA graph of each cache, with the model's fingerprint when the graph was captured.
        self.graphs = WeakKeyDictionary[Cache, tuple[CudaGraph, Hashable]]()
        self._model, self._options = model, options
        self._compiled: dict[Hashable, Callable[..., Any]] = {}
        self._functions: dict[tuple[bool, bool], ForwardFunctions] = {}
        self._guard: ModelGuard | None = None
        self._version = 0  # the number of detected changes of the model

    def functions(self, recorded: bool = False) -> ForwardFunctions:
        """Returns the functions for the model's present state, for passes with or without `recorded` routing."""
        if self._guard is None or not self._guard.holds():
            self._guard, self._functions = ModelGuard(self._model), {}
            self._version += 1
        kind = torch.is_grad_enabled(), recorded
        if kind not in self._functions:
            self._functions[kind] = self._compile_all(*kind)
        return self._functions[kind]

    def fingerprint(self) -> Hashable:
        """Returns the state that a CUDA graph depends on: the model's structure, weight addresses and autocast."""
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        return self._version, autocast, tuple(weight.data_ptr() for weight in self._model.parameters())

    def _compile_all(self, differentiates: bool, recorded: bool) -> ForwardFunctions:
        model, run_head = self._model, type(self._model).logits
        with torch.device("meta"):  # allocates no memory
            reference = model.reference()
        built = dict(zip(reference.spec.layers, reference.layers, strict=True))
        layers = [
            self._compile(run_layer, (spec, recorded), [(layer, built[spec])], differentiates)
            for spec, layer in zip(model.spec.layers, model.layers, strict=True)
        ]
        names = "norm", "head" if model.head else "embed", *(("contraction",) if model.contraction else ())
        parts = [(getattr(model, name), getattr(reference, name)) for name in names]
        spec = model.spec
        kind = "head", spec.norm, spec.tied, spec.logits_scaling, spec.logit_cap, spec.streams
        head = self._compile(run_head, kind, parts, differentiates)
        uncompiled = sum(function is run_layer for function in layers) + (head is run_head)
        if uncompiled:
            log.warning(
                "%d of %d parts of the model have hooks or tensors that torch cannot trace: these run uncompiled",
                uncompiled,
                len(layers) + 1,
            )
        return ForwardFunctions(layers, head, replayable=not (uncompiled or recorded or has_hooks(model)))

    def _compile(
        self,
        function: F,
        spec: tuple[Hashable, ...],
        parts: Sequence[tuple[nn.Module, nn.Module | None]],
        differentiates: bool,
    ) -> F:
        """Returns `function` compiled for modules like these, or `function` itself if they cannot be compiled. `parts`
        pairs each module with the module that its spec builds."""
        modules = [module for module, _ in parts]
        if any(has_hooks(module) or has_opaque_parameters(module) for module in modules):
            return function
        as_built = all(is_as_built(module, reference) for module, reference in parts)
        facts = tuple(parameter_facts(module, differentiates) for module in modules)
        structure = () if as_built else tuple((n, type(m)) for module in modules for n, m in module.named_modules())
        training = tuple(module.training for module in modules)
        key = (function, spec, structure, facts, training, differentiates)
        if key not in self._compiled:
            self._compiled[key] = inductor.compiled(function, as_built, **self._options)
        return cast(F, self._compiled[key])


def mark_dynamic_lengths(ctx: ForwardContext, new: int, layer_caches: Sequence[LayerCache] = ()) -> None:
    """Tells the compiler which lengths vary independently in a pass of `new` tokens over these caches. By default it
    assumes that equal lengths stay equal. If two lengths were equal by chance, it would recompile once they differ.

    In single-token decode on the CPU, the number of keys is unbacked (unknown to the compiler). Otherwise the compiler
    would compare it with 1, 4,096 and the cache's size, and recompile whenever a result changes. (It is fixed in a
    static cache.)
    """
    from torch._dynamo.decorators import mark_unbacked, maybe_mark_dynamic

    for view in ctx.views.values():
        if new == 1 and view.mask is None and view.keys.device.type == "cpu":
            mark_unbacked(view.keys, 0, hint_override=KEYS_HINT)
        else:
            maybe_mark_dynamic(view.keys, 0)
            maybe_mark_dynamic(view.write, 0)
        if view.so_far is not None and view.so_far is not ctx.positions:
            mark_unbacked(view.so_far, 0, hint_override=KEYS_HINT)  # it determines the number of entries: 0, 1 or more
    for table in ctx.tables.values():
        for part in table if isinstance(table, tuple) else ():
            if len(part) != new:  # a table with one row per block of tokens
                maybe_mark_dynamic(part, 0)
    for layer_cache in layer_caches:  # the number of places may equal a head's width by chance
        for stream in layer_cache.resizable():
            maybe_mark_dynamic(stream, 2)


def mark_handed_on(values: Mapping[Hashable, Any]) -> None:
    """Tells the compiler which sizes vary in the streams (b, heads, places, width) for later layers. The number of
    places varies independently of all other lengths. Heads and widths are fixed by the specs."""
    from torch._dynamo.decorators import mark_static, maybe_mark_dynamic

    for value in values.values():
        for stream in value if isinstance(value, tuple) else (value,):
            if isinstance(stream, Tensor) and stream.ndim == 4:
                maybe_mark_dynamic(stream, 2)
                mark_static(stream, [1, 3])


class CudaGraph:
    """A decode step, captured once and replayed for every later token.

    `step`: tokens (b, 1) and their position (1,) -> logits (b, 1, vocab). It may depend only on these two and on memory
    with a fixed address: the weights and a static cache. The warm-up steps write to the cache at `position`, and the
    first replay overwrites it.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, position: int) -> None:
        self._tokens = tokens.clone()
        self._position = torch.full((1,), position, device=tokens.device)
        warmup = torch.cuda.Stream(tokens.device)
        warmup.wait_stream(torch.cuda.current_stream(tokens.device))
        with torch.cuda.stream(warmup):
            for _ in range(WARMUP_STEPS):
                step(self._tokens, self._position)
        torch.cuda.current_stream(tokens.device).wait_stream(warmup)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = step(self._tokens, self._position)

    def __call__(self, tokens: Tensor, position: int) -> Tensor:
        """Returns the logits for the tokens at this position, in a tensor that later replays do not overwrite."""
        self._tokens.copy_(tokens)
        self._position.fill_(position)
        self._graph.replay()
        return self._logits.clone()
