"""Each part of a model on the reference's own input, and the experts its routers choose: where a difference begins.

A whole forward pass hands every difference on to the layers above. Here each branch of each layer gets exactly what the
reference's branch got, so that a difference in its output began in it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from weights.reference.logits import chunks_of_positions
from zoo.blocks import GroupedSigmoidTopK, NormedSoftmaxTopK, SoftmaxTopK, SqrtSoftplusTopK
from zoo.blocks.routers import Router
from zoo.model.module import Model

# The largest rounding error: relative to the norm of a token's vector, and to the largest score of a router.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-4}
Choices = dict[nn.Module, list[Tensor]]  # router -> (n, k) expert ids of each forward pass, in ascending order


@dataclass(frozen=True)
class Part:
    """One part of the model: "embedding", a layer's "attention", "feed-forward" or "per-layer input", or "head", with
    the last norm.
    `error` is the largest of all tokens' |zoo - reference| / |reference|, norms of the token's vector; up to `bound` it
    is rounding. `ties` counts tokens that chose other experts by rounding; they are left out of `error`."""

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
    per-layer input (the output where there is none) and the layer's output, (batch, t, dim) each, and the chosen
    experts (n, k) in ascending order, None without a router."""

    layer: int
    x: Tensor
    between: Tensor
    gated: Tensor
    out: Tensor
    experts: Tensor | None


class PartwiseComparison:
    """The zoo's parts, each run on what the reference's got, as the reference computes it; `parts` collects them, and
    `experts` the reference's choices, layer by layer (batch, t, k)."""

    def __init__(self, model: Model, tokens: Tensor, dtype: torch.dtype) -> None:
        self.model, self.tokens, self.bound = model, tokens, ROUNDING[dtype]
        self.ctx, self.layer_caches = model.prepare(tokens)
        self.parts: list[Part] = []
        self.experts: list[Tensor] = []
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
            between = layer.attn(reference.x, ctx, self.layer_caches[index])
            between = scaled(between) if layer.ffn is None else between
            self._add("attention", index, _relative_error(between, reference.between))
        if layer.ffn is None:
            return
        inputs: list[Tensor] = []
        with recorded_choices(layer, lambda router, x: inputs.append(x.flatten(0, -2))) as choices:
            error = _relative_error(scaled(layer.ffn(reference.between, ctx)), reference.gated)
        if reference.experts is None:
            return self._add("feed-forward", index, error)
        self.experts.append(reference.experts.unflatten(0, (len(self.tokens), -1)))
        router, (chosen,) = next(iter(choices.items()))
        tie = (chosen != reference.experts).any(-1) & (margin(router, inputs[0]) <= self.bound)
        self._add("feed-forward", index, error.masked_fill(tie.view_as(error), 0), int(tie.sum()))

    def head(self, logits: Tensor) -> None:
        """Compare the last norm and the head with the reference's `logits` (batch, t, vocab)."""
        chunks = chunks_of_positions(*logits.shape)
        errors = [_relative_error(self.model.logits(self.last[:, chunk]), logits[:, chunk]) for chunk in chunks]
        self._add("head", None, torch.cat(errors, dim=1))

    def _add(self, name: str, layer: int | None, error: Tensor, ties: int = 0) -> None:
        self.parts.append(Part(name, layer, float(error.max()), self.bound, ties))


def _relative_error(value: Tensor, reference: Tensor) -> Tensor:
    """(batch, t, ...) twice -> (batch, t): of all that a token has, several residual streams included."""
    value, reference = value.flatten(2), reference.flatten(2)
    norm = reference.float().norm(dim=-1)
    return (value.float() - reference.float()).norm(dim=-1) / norm.clamp_min(torch.finfo(torch.float32).tiny)


@contextmanager
def removed_after(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Register hooks now, and remove them in the end."""
    with ExitStack() as registered:
        for hook in hooks:
            registered.enter_context(hook)
        yield


@contextmanager
def recorded_choices(
    module: nn.Module, see_input: Callable[[nn.Module, Tensor], None] | None = None
) -> Iterator[Choices]:
    """The experts that each of the zoo's routers in a module chooses meanwhile; `see_input` gets what it chooses by."""
    routers = [part for part in module.modules() if isinstance(getattr(part, "spec", None), Router)]
    choices: Choices = {router: [] for router in routers}

    def record(router: nn.Module, args: tuple[Tensor, ...], out: tuple[Tensor, Tensor]) -> None:
        choices[router].append(out[1].flatten(0, -2).sort(-1).values)
        if see_input is not None:
            see_input(router, args[0])

    with removed_after(router.register_forward_hook(record) for router in routers):
        yield choices


def gathered(choices: Choices, batch: int) -> list[Tensor]:
    """The choices of each router over all its forward passes: (batch, t, k)."""
    return [torch.cat([each.unflatten(0, (batch, -1)) for each in passes], dim=1) for passes in choices.values()]


def agreement(one: Sequence[Tensor], other: Sequence[Tensor], shape: tuple[int, int]) -> tuple[Tensor, int]:
    """Two runs' choices, layer by layer -> (batch, t) whether they agree up to there, and how many choices differ. A
    token with another expert changes that token and every later one of its row in the layers above: these need not be
    equal, and their choices are not counted again."""
    agree, differing = torch.ones(shape, dtype=torch.bool), 0
    for first, second in zip(one, other, strict=True):
        differ = (first != second).any(-1) & agree
        differing += int(differ.sum())
        agree &= ~differ.cummax(-1).values
    return agree, differing


def margin(router: nn.Module, x: Tensor) -> Tensor:
    """(n, dim) -> (n,) the lead of the last chosen expert, or group of experts, over the first that is not chosen,
    relative to the largest score. Infinite for an unknown kind of router: none of its choices counts as a tie."""
    spec: Any = router.spec
    weight, parameters = router.get_parameter("weight"), dict(router.named_parameters())
    if isinstance(spec, SoftmaxTopK | NormedSoftmaxTopK):
        scores = cast(Any, router).logits(x)
        return _lead(scores, spec.k) / scores.abs().amax(-1)
    if isinstance(spec, SqrtSoftplusTopK):
        scores = F.softplus(cast(Any, router).logits(x)).sqrt() + parameters["correction"]
        return _lead(scores, spec.k) / scores.abs().amax(-1)
    if isinstance(spec, GroupedSigmoidTopK):
        scores = F.linear(x.float(), weight.float()).sigmoid() + parameters["correction"]
        grouped = scores.unflatten(-1, (spec.groups, -1))
        best = grouped.topk(2).values.sum(-1)
        kept = grouped.masked_fill((best < best.topk(spec.keep).values[:, -1:])[..., None], float("-inf"))
        lead = torch.minimum(_lead(kept.flatten(-2), spec.k), _lead(best, spec.keep))
        return lead / scores.abs().amax(-1)
    return torch.full_like(x[:, 0], float("inf"))


def _lead(scores: Tensor, k: int) -> Tensor:
    """(n, scores) -> (n,) the k-th largest minus the next, infinite where there is no next."""
    if k == scores.shape[-1]:
        return torch.full_like(scores[:, 0], float("inf"))
    top = scores.topk(k + 1).values
    return top[:, k - 1] - top[:, k]
