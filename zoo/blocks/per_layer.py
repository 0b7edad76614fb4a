"""Per-layer embeddings: each layer receives its own narrow vector for each token (Gemma 3n; Gemma 4 E2B and E4B).

A model's `PerLayerInputs` computes the vectors once per pass. Each layer's `LayerInput` processes the layer's
own vector in a residual branch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.blocks.feed_forward import Activation, GeGLU
from zoo.blocks.norms import Norm
from zoo.core.forward_context import ForwardContext
from zoo.core.ops.linear import Linear
from zoo.costs import Breakdown, linear_flops, linear_params
from zoo.registry import Block, Spec

__all__ = ["LayerInput", "PerLayerInputs"]


@dataclass(frozen=True)
class PerLayerInputs(Spec):
    """(sqrt(width) * table[token] + norm(projection(x) * dim^-0.5)) / sqrt(2): a vector of `width` elements for each
    layer. Here x is the embedding as the first layer receives it. The table has a row for each token id and layer."""

    width: int
    norm: Norm

    role = "inputs"

    def resized(self, to: Any) -> dict[str, Any]:
        return {"width": to.share(self.width)}

    def build(self, dim: int, vocab: int, layers: int) -> nn.Module:
        """Returns the module, allocated and not initialised."""
        return _PerLayerInputs(self, dim, vocab, layers)

    def table_params(self, vocab: int, layers: int) -> int:
        """The number of parameters of the table."""
        return vocab * layers * self.width

    def param_breakdown(self, dim: int, vocab: int, layers: int) -> Breakdown:
        """Returns the number of parameters of each part. The table is counted under "embedding"."""
        projection = linear_params(dim, layers * self.width)
        return {
            "embedding": self.table_params(vocab, layers),
            "inputs": projection,
            "norm": self.norm.params(self.width),
        }

    def flops(self, dim: int, layers: int, new: int) -> int:
        """Returns the FLOPs for `new` tokens, by the convention of zoo.costs."""
        return linear_flops(new, dim, layers * self.width)

    def describe(self) -> str:
        return f"per-layer inputs of {self.width}"


class _PerLayerInputs(nn.Module):
    def __init__(self, spec: PerLayerInputs, dim: int, vocab: int, layers: int) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(vocab, layers * spec.width, _weight=torch.empty(vocab, layers * spec.width))
        self.projection = Linear(dim, layers * spec.width, bias=False)
        self.norm = spec.norm.build(spec.width)

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        """Token ids (b, t), their embeddings (b, t, dim) -> (layers, b, t, width)"""
        scale = torch.tensor(self.spec.width**0.5, dtype=x.dtype)  # rounded first, as Gemma's own code does
        embedded = self.embed(tokens) * scale
        projected = self.projection(x) * x.shape[-1] ** -0.5
        embedded, projected = (each.unflatten(-1, (-1, self.spec.width)) for each in (embedded, projected))
        return ((self.norm(projected) + embedded) * 2**-0.5).permute(2, 0, 1, 3).contiguous()


@dataclass(frozen=True)
class LayerInput(Block):
    """out(act(gate(x), input)), where `input` is the layer's own input of `width` elements per token."""

    width: int
    act: Activation = GeGLU()

    role = "inputs"

    def resized(self, to: Any) -> dict[str, Any]:
        return {"width": to.share(self.width)}

    def build(self, dim: int) -> nn.Module:
        return _LayerInput(self, dim)

    def params(self, dim: int) -> int:
        return 2 * linear_params(dim, self.width)

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return 2 * linear_flops(new, dim, self.width)

    def describe(self) -> str:
        return f"{self.act.describe()} of a per-layer input, width {self.width}"


class _LayerInput(nn.Module):
    residual_outputs = ("out",)

    def __init__(self, spec: LayerInput, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.gate = Linear(dim, spec.width, bias=False)
        self.out = Linear(spec.width, dim, bias=False)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        assert ctx.layer_input is not None
        return self.out(self.spec.act.join(self.gate(x), ctx.layer_input))
