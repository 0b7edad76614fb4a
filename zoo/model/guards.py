"""Guards of a compiled model: checks of its modules, their attributes and hooks, and the facts of its parameters.

Compiled code assumes that these do not change. It does not depend on the values of parameters.
"""

from collections.abc import Hashable, Mapping
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))  # attributes that every module has
PARAMETER_FACTS = attrgetter("dtype", "requires_grad", "device", "shape")
HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


class ModelGuard:
    """A snapshot of a model. `holds` compares the model with it, which takes 0.3 ms for 500 modules."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())[1:]  # the model may change its own attributes
        self._hooks = [hooks for module in (model, *modules) for hooks in hooks_of(module)] + global_hooks()
        self._hook_counts = list(map(len, self._hooks))
        self._children = [model._modules, *(module._modules for module in modules if module._modules)]
        self._children_before = [dict(children) for children in self._children]
        self._attributes = [vars(module) for module in modules]
        self._attributes_before = [dict(attributes) for attributes in self._attributes]
        self._tensors = [each for module in modules for each in (module._parameters, module._buffers) if each]
        self._facts_before = self._facts()

    def holds(self) -> bool:
        """Whether the model is unchanged: the same modules with the same attributes, the same number of hooks, and
        parameters of the same types, dtypes, devices, shapes, strides and requires_grad. Their values may differ."""
        try:
            return (
                self._children == self._children_before
                and self._attributes == self._attributes_before
                and list(map(len, self._hooks)) == self._hook_counts
                and self._facts() == self._facts_before
            )
        except RuntimeError:  # an attribute was replaced by another tensor: tensors compare element by element
            return False

    def _facts(self) -> list[object]:
        tensors = [each for owned in self._tensors for each in owned.values() if each is not None]
        counts = map(len, self._tensors)
        return [*map(type, tensors), *map(PARAMETER_FACTS, tensors), *map(_strides, tensors), *counts]


def _strides(tensor: Tensor) -> tuple[int, ...] | None:
    try:
        return tensor.stride()
    except RuntimeError:  # a sparse tensor has no strides
        return None


def hooks_of(module: nn.Module) -> list[Mapping[Any, Any]]:
    """Returns the hook tables that a call of the module, or its backward pass, consults."""
    return [getattr(module, f"_{kind}") for kind in HOOKS]


def global_hooks() -> list[Mapping[Any, Any]]:
    """Returns the tables of global hooks, which apply to all modules of the process."""
    return [getattr(torch_modules, f"_global_{kind}") for kind in HOOKS]


def has_hooks(module: nn.Module) -> bool:
    """Whether the module or a module inside it has a hook, or there is a global hook."""
    return any(global_hooks()) or any(hooks for each in module.modules() for hooks in hooks_of(each))


def has_opaque_parameters(module: nn.Module) -> bool:
    """Whether a parameter or buffer has a tensor subclass that torch's compiler would treat as a plain tensor. The
    compiler supports subclasses that declare their inner tensors, as quantised and sharded tensors do."""
    kinds = {type(each) for each in (*module.parameters(), *module.buffers())} - {Tensor, nn.Parameter}
    return any(not hasattr(kind, "__tensor_flatten__") for kind in kinds)


def is_as_built(module: nn.Module, reference: nn.Module | None) -> bool:
    """Whether a module equals `reference`, a fresh module from its spec, except for the values, dtypes and devices of
    parameters. Classes, attributes and parameter shapes must be equal, and parameters must be plain tensors."""
    if reference is None:  # the head of a tied model
        return False
    modules, references = (list(each.named_modules(remove_duplicate=False)) for each in (module, reference))
    return [name for name, _ in modules] == [name for name, _ in references] and all(
        _structure(one) == _structure(other) for (_, one), (_, other) in zip(modules, references, strict=True)
    )


def _structure(module: nn.Module) -> tuple[object, ...]:
    """Returns a module's class, the attributes that the class sets, the names of its children and buffers, and the
    layouts of its parameters by name."""
    attributes = {name: value for name, value in vars(module).items() if name not in MODULE_ATTRIBUTES}
    layouts = {
        name: None if each is None else (type(each), each.shape, each.is_contiguous())
        for name, each in module._parameters.items()
    }
    return type(module), attributes, module._modules.keys(), module._buffers.keys(), layouts


def parameter_facts(module: nn.Module, differentiates: bool) -> Hashable:
    """Returns the facts about a module's parameters and buffers that its compiled code assumes."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return tuple(
        (name, type(each), each.dtype, each.device, differentiates and each.requires_grad) for name, each in tensors
    )
