"""Seeing that a model was changed: its modules, their attributes and hooks, and the facts of its parameters.

Compiled code relies on all of these, and on the values of parameters not at all.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as globals_of_modules

TORCHS_OWN = frozenset(vars(nn.Module()))  # attributes of every module
FACTS = attrgetter("dtype", "requires_grad", "device", "shape")


class Watch:
    """A model as it is now. `holds` looks again, in 0.3 ms for 500 modules, since nearly all of it runs in C."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())[1:]  # the model's own attributes are its own business
        self._hooks = [hooks for module in (model, *modules) for hooks in hooks_of(module)] + global_hooks()
        self._hook_counts = list(map(len, self._hooks))
        self._children = [model._modules, *(module._modules for module in modules if module._modules)]
        self._held = [dict(children) for children in self._children]
        self._attributes = [vars(module) for module in modules]
        self._values = [dict(attributes) for attributes in self._attributes]
        self._owned = [each for module in modules for each in (module._parameters, module._buffers) if each]
        self._facts = self._read()

    def holds(self) -> bool:
        """Whether the model is as it was: the same modules with the same attributes, as many hooks, and parameters of
        the same types, dtypes, devices, shapes, strides and need of gradients. Their values may be others."""
        try:
            return (
                self._children == self._held
                and self._attributes == self._values
                and list(map(len, self._hooks)) == self._hook_counts
                and self._read() == self._facts
            )
        except RuntimeError:  # an attribute was and is a tensor, another one: tensors compare element by element
            return False

    def _read(self) -> list[object]:
        tensors = [each for owned in self._owned for each in owned.values() if each is not None]
        return [
            *map(type, tensors),
            *map(FACTS, tensors),
            *(_strides(each) for each in tensors),
            *map(len, self._owned),
        ]


def _strides(tensor: Tensor) -> tuple[int, ...] | None:
    try:
        return tensor.stride()
    except RuntimeError:  # sparse ones have none
        return None


def hooks_of(module: nn.Module) -> list[Mapping[Any, Any]]:
    """The tables of a module's hooks that calling it, or differentiating it, looks at."""
    return [
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    ]


def has_hooks(module: nn.Module) -> bool:
    """Whether the module, or one inside it, has a hook."""
    return any(hooks for each in module.modules() for hooks in hooks_of(each))


def global_hooks() -> list[Mapping[Any, Any]]:
    """The tables of hooks for all modules there are."""
    return [
        globals_of_modules._global_forward_hooks,
        globals_of_modules._global_forward_pre_hooks,
        globals_of_modules._global_backward_hooks,
        globals_of_modules._global_backward_pre_hooks,
    ]


def has_global_hooks() -> bool:
    """Whether there is a hook for all modules."""
    return any(global_hooks())


def has_opaque_parameters(module: nn.Module) -> bool:
    """Whether a parameter is of a tensor subclass that torch's compiler does not look into: it would compute as if it
    were a plain tensor. (Subclasses that say what they wrap, as quantised and sharded ones do, it knows.)"""
    kinds = {type(each) for each in (*module.parameters(), *module.buffers())} - {Tensor, nn.Parameter}
    return any(not hasattr(kind, "__tensor_flatten__") for kind in kinds)


def is_as_built(module: nn.Module, reference: nn.Module) -> bool:
    """Whether a module is like `reference`, fresh from its spec, in all but the values, the dtype and the device of its
    parameters: the same classes with the same attributes, and plain parameters of the same shapes."""
    if type(module) is not type(reference) or module._modules.keys() != reference._modules.keys():
        return False
    if _attributes(module) != _attributes(reference) or module._buffers.keys() != reference._buffers.keys():
        return False
    if module._parameters.keys() != reference._parameters.keys():
        return False
    for name, parameter in module._parameters.items():
        other = reference._parameters[name]
        if type(parameter) is not type(other):
            return False
        if parameter is None or other is None:
            continue
        if parameter.shape != other.shape or not parameter.is_contiguous():
            return False
    children = ((child, reference._modules[name]) for name, child in module._modules.items())
    return all(
        one is other or (one is not None and other is not None and is_as_built(one, other)) for one, other in children
    )


def _attributes(module: nn.Module) -> dict[str, object]:
    """The attributes that its class has set, and nothing of torch's own."""
    return {name: value for name, value in vars(module).items() if name not in TORCHS_OWN}


def parameter_facts(module: nn.Module, differentiates: bool) -> Hashable:
    """What code compiled for a module assumes of its parameters and buffers."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return tuple(
        (name, type(each), each.dtype, each.device, differentiates and each.requires_grad) for name, each in tensors
    )
