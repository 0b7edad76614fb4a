"""Compares each part of a model on the reference's own input, in float64, to locate the start of a difference.

A whole forward pass passes every difference on to the layers above. Here each branch of each layer gets exactly the
input of the reference's branch, so that a difference in its output began in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from weights.reference.logits import chunks_of_positions
from zoo.core.float32 import BOUND, largest_difference
from zoo.model.module import Model


@dataclass(frozen=True)
class Part:
    """One part of the model: "embedding", a layer's "attention", "feed-forward" or "per-layer input", or "head", with
    the last norm. `error` is the largest difference from the reference's output, relative to its largest element."""

    name: str
    layer: int | None
    error: float

    @property
    def passed(self) -> bool:
        """Whether the difference is rounding."""
        return self.error <= BOUND

    def __str__(self) -> str:
        return f"the {self.name}" if self.layer is None else f"layer {self.layer}'s {self.name}"


@dataclass(frozen=True)
class LayerActivations:
    """The activations of one layer of the reference in a forward pass, (batch, t, dim) each: the inputs of attention,
    of the feed-forward and of the gate of a per-layer input (the output where there is none), and the layer's
    output."""

    layer: int
    x: Tensor
    between: Tensor
    gated: Tensor
    out: Tensor


class PartwiseComparison:
    """Runs each of the zoo's parts on the input of the reference's part, during its pass.
    `parts` collects them."""

    def __init__(self, model: Model, tokens: Tensor) -> None:
        self.model, self.tokens = model, tokens
        self.ctx, self.layer_caches = model.prepare(tokens)
        self.parts: list[Part] = []
        self.last = torch.empty(0)  # the output of the reference's last layer
        self.inputs: Sequence[Tensor | None] = ()  # the per-layer inputs

    def embedding(self, x: Tensor) -> None:
        """Compares the embeddings with the reference's `x` (batch, t, dim)."""
        embedded = self.model.embedded(self.tokens, self.ctx.positions)
        self._add("embedding", None, self.model.expanded(embedded), x)
        self.inputs = self.model.layer_inputs(self.tokens, x)

    def layer(self, reference: LayerActivations) -> None:
        """Compares the branches of one layer; the last includes the factor of the layer's output."""
        index, self.last = reference.layer, reference.out
        layer: Any = self.model.layers[index]
        ctx = replace(self.ctx, layer_input=self.inputs[index], tokens=self.tokens)
        scaled = layer.output_scale or nn.Identity()
        if layer.inputs is not None:
            self._add("per-layer input", index, scaled(layer.inputs(reference.gated, ctx)), reference.out)
            scaled = nn.Identity()
        if layer.attn is not None:
            between = layer.attn(reference.x, ctx, self.layer_caches[index])
            between = scaled(between) if layer.ffn is None else between
            self._add("attention", index, between, reference.between)
        if layer.ffn is not None:
            self._add("feed-forward", index, scaled(layer.ffn(reference.between, ctx)), reference.gated)

    def head(self, logits: Tensor) -> None:
        """Compares the last norm and the head with the reference's `logits` (batch, t, vocab)."""
        largest = float(logits.abs().max())
        errors = []
        for chunk in chunks_of_positions(*logits.shape):
            part, scale = logits[:, chunk], float(logits[:, chunk].abs().max())
            errors.append(largest_difference(self.model.logits(self.last[:, chunk]), part) * (scale / largest))
        self.parts.append(Part("head", None, float(torch.tensor(errors).max())))  # NaN where one is

    def _add(self, name: str, layer: int | None, value: Tensor, reference: Tensor) -> None:
        self.parts.append(Part(name, layer, largest_difference(value.flatten(2), reference.flatten(2))))
