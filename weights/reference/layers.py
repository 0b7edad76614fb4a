"""Each part of a model on the reference's own input: where a difference begins.

A whole forward pass hands every difference on to the layers above. Here each branch of each layer gets exactly what the
reference's branch got, so that a difference in its output began in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from weights.reference.choices import of_reference, recorded_choices, ties
from weights.reference.logits import chunks_of_positions
from zoo.model.module import Model

# The largest rounding error: relative to the norm of a token's vector, and to the largest score of a choice.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-4}


@dataclass(frozen=True)
class Part:
    """One part of the model: "embedding", a layer's "attention", "feed-forward" or "per-layer input", or "head", with
    the last norm.
    `error` is the largest of all tokens' |zoo - reference| / |reference|, norms of the token's vector; up to `bound` it
    is rounding. `ties` counts tokens for which rounding chose other experts or keys, here or in the layer whose choice
    this one shares; they are left out of `error`."""

    name: str
    layer: int | None
    error: float
    bound: float
    ties: int = 0

    @property
    def passed(self) -> bool:
        """Whether the difference is rounding."""
        return self.error <= self.bound

    def __str__(self) -> str:
        return f"the {self.name}" if self.layer is None else f"layer {self.layer}'s {self.name}"


@dataclass(frozen=True)
class LayerActivations:
    """One layer of the reference in a forward pass: the inputs of attention, of the feed-forward and of the gate of a
    per-layer input (the output where there is none) and the layer's output, (batch, t, dim) each; the tokens or entries
    that an indexer chose (batch, t, at most k), and the chosen experts (n, k), None without."""

    layer: int
    x: Tensor
    between: Tensor
    gated: Tensor
    out: Tensor
    keys: Tensor | None
    experts: Tensor | None


class PartwiseComparison:
    """The zoo's parts, each run on what the reference's got, as the reference computes it; `parts` collects them, and
    `choices` the reference's, layer by layer (batch, t, k), ascending."""

    def __init__(self, model: Model, tokens: Tensor, dtype: torch.dtype) -> None:
        self.model, self.tokens, self.bound = model, tokens, ROUNDING[dtype]
        self.ctx, self.layer_caches = model.prepare(tokens)
        self.parts: list[Part] = []
        self.choices: list[Tensor] = []
        self.tied: dict[str, Tensor] = {}  # tokens (batch, t) with a tie, by the name of a choice that is handed on
        self.last = torch.empty(0)  # the output of the reference's last layer
        self.inputs: Sequence[Tensor | None] = ()  # what the model computes for each layer alone

    def embedding(self, x: Tensor) -> None:
        """Compare with the reference's embeddings `x` (batch, t, dim)."""
        embedded = self.model.embedded(self.tokens, self.ctx.positions)
        self._add("embedding", None, _relative_error(self.model.expanded(embedded), x))
        self.inputs = self.model.layer_inputs(self.tokens, x)

    def layer(self, reference: LayerActivations) -> None:
        """Compare the branches of one layer, the last with what the layer's output is multiplied by."""
        index, self.last = reference.layer, reference.out
        layer: Any = self.model.layers[index]
        ctx = replace(self.ctx, layer_input=self.inputs[index], tokens=self.tokens)
        scaled = layer.output_scale or nn.Identity()
        if layer.inputs is not None:
            after = scaled(layer.inputs(reference.gated, ctx))
            self._add("per-layer input", index, _relative_error(after, reference.out))
            scaled = nn.Identity()
        if layer.attn is not None:
            between, tied = self._run(layer.attn, reference, reference.x, ctx, self.layer_caches[index])
            between = scaled(between) if layer.ffn is None else between
            tied = self._also_tied_before(self.model.spec.layers[index].mixer, tied)
            self._add("attention", index, _relative_error(between, reference.between), tied)
        if layer.ffn is not None:
            out, tied = self._run(layer.ffn, reference, reference.between, ctx)
            self._add("feed-forward", index, _relative_error(scaled(out), reference.gated), tied)

    def _run(self, branch: nn.Module, reference: LayerActivations, *args: Any) -> tuple[Tensor, Tensor]:
        """The output of a branch, (batch, t, ...), and the tokens for which rounding chose otherwise in it (batch, t).
        Collects the reference's choices."""
        seen: list[tuple[Any, ...]] = []
        with recorded_choices(branch, lambda *each: seen.append(each)):
            out = branch(*args)
        tied = torch.zeros(self.tokens.shape, dtype=torch.bool)
        for part, given, result, chosen in seen:
            ids = reference.experts if part.spec.role == "router" else reference.keys
            if ids is not None:
                self.choices.append(of_reference(ids, len(self.tokens), part.spec))
                tied |= ties(part, given, result, chosen, self.choices[-1], self.bound)
        return out, tied

    def _also_tied_before(self, mixer: Any, tied: Tensor) -> Tensor:
        """Ties (batch, t) of a layer's mixer with those of the choices that it takes; kept for those it hands on."""
        tied = torch.stack([tied, *(self.tied[name] for name in mixer.takes() if name in self.tied)]).any(0)
        self.tied |= dict.fromkeys(mixer.hands_on(), tied)
        return tied

    def head(self, logits: Tensor) -> None:
        """Compare the last norm and the head with the reference's `logits` (batch, t, vocab)."""
        chunks = chunks_of_positions(*logits.shape)
        errors = [_relative_error(self.model.logits(self.last[:, chunk]), logits[:, chunk]) for chunk in chunks]
        self._add("head", None, torch.cat(errors, dim=1))

    def _add(self, name: str, layer: int | None, error: Tensor, tied: Tensor | None = None) -> None:
        counted = error if tied is None else error.masked_fill(tied, 0)
        self.parts.append(Part(name, layer, float(counted.max()), self.bound, 0 if tied is None else int(tied.sum())))


def _relative_error(value: Tensor, reference: Tensor) -> Tensor:
    """(batch, t, ...) twice -> (batch, t): of all that a token has, several residual streams included."""
    value, reference = value.flatten(2), reference.flatten(2)
    norm = reference.float().norm(dim=-1)
    return (value.float() - reference.float()).norm(dim=-1) / norm.clamp_min(torch.finfo(torch.float32).tiny)
