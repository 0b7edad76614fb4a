"""Tables of the parts of a block, from which its parameter counts, FLOPs, cuts among ranks and modules follow."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from zoo.blocks.norms import Norm
from zoo.core.ops.causal_conv import CausalConv
from zoo.core.ops.linear import Linear
from zoo.costs import Breakdown, linear_flops, linear_params
from zoo.registry import Mixer
from zoo.sharding import Cut, Cuts

__all__ = ["Parts", "PartsModule", "TableMixer", "conv", "matrix", "normed", "vector"]


class Part(NamedTuple):
    """A parameter or an inner module. `flops` counts its matrix products for one token.

    `rows` names the field with which the part's outputs are divided among ranks, or lists (field, number of rows) for
    several sections of outputs. `columns` names the field with which the part's inputs are divided.
    """

    params: int
    build: Callable[[], nn.Module | nn.Parameter]
    flops: int = 0
    rows: str | tuple[tuple[str, int], ...] = ""
    columns: str = ""
    is_norm: bool = False


Parts = Mapping[str, Part | None]
"""Maps an attribute name in the module to its part; "q.up" is the submodule "up" of "q". None: an absent part."""


def matrix(inputs: int, outputs: int, bias: bool = False, **divided: Any) -> Part:
    """Returns the part for a linear map."""
    build = partial(Linear, inputs, outputs, bias)
    return Part(linear_params(inputs, outputs, bias), build, linear_flops(1, inputs, outputs), **divided)


def vector(size: int, **divided: Any) -> Part:
    """Returns the part for a parameter with `size` elements."""
    return Part(size, lambda: nn.Parameter(torch.empty(size)), **divided)


def conv(channels: int, tokens: int, bias: bool = False, silu: bool = True, **divided: Any) -> Part:
    """Returns the part for a causal convolution of each channel over the last `tokens` tokens."""
    return Part((tokens + bias) * channels, partial(CausalConv, channels, tokens, bias=bias, silu=silu), **divided)


def normed(norm: Norm, width: int, **divided: Any) -> Part:
    """Returns the part for a norm over `width` elements."""
    return Part(norm.params(width), partial(norm.build, width), is_norm=True, **divided)


class TableMixer(Mixer, abstract=True):
    """A mixer with all its parameters in one table."""

    @abstractmethod
    def parts(self, dim: int) -> Parts:
        """Returns the table of parts, in the order of the module's attributes."""

    def param_breakdown(self, dim: int) -> Breakdown:
        parts = [part for part in self.parts(dim).values() if part]
        norms = sum(part.params for part in parts if part.is_norm)
        return {"attn": sum(part.params for part in parts) - norms, "norm": norms}

    def projection_flops(self, dim: int, new: int) -> int:
        """Returns the FLOPs of the linear maps for `new` tokens."""
        return new * sum(part.flops for part in self.parts(dim).values() if part)

    def cuts(self) -> Cuts:
        found: dict[str, Cut] = {}
        for name, part in self.parts(1).items():
            if part and part.columns:
                found[name] = self.cut(part.columns, 1)
            elif part and isinstance(part.rows, str):
                found |= {name: self.cut(part.rows)} if part.rows else {}
            elif part:
                found[name] = Cut(0, tuple(self.section(*each) for each in part.rows))
        return found


class PartsModule(nn.Module):
    """The module of a block with a table of parts: each part is an attribute."""

    residual_outputs: tuple[str, ...] = ("o",)  # matrices that compute the block's output

    def __init__(self, spec: Any, parts: Parts) -> None:
        super().__init__()
        self.spec = spec
        for name, part in parts.items():
            outer, _, inner = name.partition(".")
            if inner and outer not in self._modules:
                self.add_module(outer, nn.Sequential())
            setattr(self.get_submodule(outer) if inner else self, inner or outer, part and part.build())

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Returns a part."""
