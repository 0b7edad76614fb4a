"""Tiny models of every released composition, with every parameter drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from tests.reference import token_by_token
from zoo.blocks.moe import _MoE
from zoo.catalog import allocate
from zoo.core.inductor import find_compiler
from zoo.errors import NotAvailable
from zoo.model.module import Model

BOUND = 1e-5  # of max(1, largest logit), in float32


@torch.no_grad()
def randomised(spec: zoo.Decoder, seed: int = 0, dtype: torch.dtype = torch.float64) -> Model:
    """Matrices are N(0, (1.2 / sqrt(fan_in))^2), so that logits reach 1 and mistakes show; norms, biases, sinks and
    corrections are off their fresh values by N(0, 0.3^2), which would hide mistakes in them."""
    model, generator = allocate(spec, dtype=dtype), torch.Generator().manual_seed(seed)
    for parent in model.modules():
        for name, weight in parent.named_parameters(recurse=False):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1 or name.endswith("bias"):
                weight.copy_(torch.as_tensor(getattr(parent, "identity", {}).get(name, 0.0)) + 0.3 * noise)
            else:
                weight.copy_(1.2 * weight.shape[-1] ** -0.5 * noise)
    return model


def bound(logits: Tensor) -> float:
    """The largest error that counts as equal to these logits."""
    return BOUND * max(1.0, logits.abs().max().item())


def is_recurrent(spec: zoo.Decoder) -> bool:
    """Whether layers keep states alone, whose order of sums differs with the length of a pass. A state beside tokens
    holds what a block has so far."""
    return any(cache.state and not cache.per_token for cache in (layer.cache_spec() for layer in spec.layers))


def passes_bound(spec: zoo.Decoder, logits: Tensor) -> float:
    """The largest error that counts as equal to these logits, of passes of other lengths: three times as large where a
    recurrence, normalised afterwards, takes chunks in another order than single tokens."""
    return bound(logits) * (3 if is_recurrent(spec) else 1)


def reference_bound(spec: zoo.Decoder, reference: nn.Module, tokens: Tensor, logits: Tensor) -> float:
    """The largest error that counts as equal to a reference's logits of tokens.

    What a recurrence computes may be small before it is normalised, and rounding then shows: the bound of such a model
    is at least a small multiple of how far the reference's whole pass is from its own token by token.
    """
    if not is_recurrent(spec):
        return bound(logits)
    own = (token_by_token(reference, tokens) - logits).abs().max().item()
    return max(bound(logits), 3 * own)


def gradient_bound(spec: zoo.Decoder, reference: nn.Module, loss: Callable[[nn.Module], Tensor]) -> float:
    """The largest error, relative to a gradient's largest element, that counts as equal to a reference's gradients of
    this loss, which it holds.

    Of a recurrence the bound is at least how much they change where each weight moves by one rounding: its outputs may
    be small before they are normalised, and no other implementation is nearer than that.
    """
    return max(3 * BOUND, gradient_rounding(reference, loss)) if is_recurrent(spec) else BOUND


def gradient_rounding(reference: nn.Module, loss: Callable[[nn.Module], Tensor]) -> float:
    """How much the gradients that a reference holds change, relative to the largest element of each, where each weight
    moves by one rounding."""
    moved = moved_gradients(reference, loss, seed=0)
    pairs = ((moved[name], each.grad) for name, each in reference.named_parameters() if each.grad is not None)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs if b.any())


def moved_gradients(reference: nn.Module, loss: Callable[[nn.Module], Tensor], seed: int) -> dict[str, Tensor]:
    """The reference's gradients of this loss where each weight is one rounding up or down, by the reference's names."""
    moved, generator = deepcopy(reference), torch.Generator().manual_seed(seed)
    moved.zero_grad()
    with torch.no_grad():
        for weight in moved.parameters():
            sign = torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
            weight.mul_(1 + sign * torch.finfo(torch.float32).eps)
    loss(moved).backward()
    return {name: each.grad for name, each in moved.named_parameters() if each.grad is not None}


def choosing_all(spec: zoo.Decoder) -> zoo.Decoder:
    """The spec with routers that choose every expert and indexers that choose every key, so that rounding decides
    between none: what a narrow dtype changes is its rounding alone."""

    def of_all(mixture: zoo.MoE) -> zoo.MoE:
        router = mixture.router
        groups = {"keep": router.groups} if hasattr(router, "groups") else {}
        return replace(mixture, router=replace(router, k=mixture.experts, **groups))

    changes = {zoo.MoE: of_all} | dict.fromkeys((zoo.Indexer, zoo.EntryIndexer), lambda indexer: replace(indexer, k=64))
    for kind, change in changes.items():
        if any(isinstance(part, kind) for part in spec.walk()):
            spec = zoo.swap(spec, kind, change)
    return spec


def tokens_of(spec: zoo.Decoder, batch: int, length: int, seed: int = 0) -> Tensor:
    """Random token ids (batch, length)."""
    return torch.randint(spec.vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def chunks(tokens: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    """`tokens` in chunks of these sizes along the sequence, the last size repeated to the end."""
    start, sizes = 0, list(sizes)
    while start < tokens.shape[1]:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        yield tokens[:, start : start + size]
        start += size


class Choice(NamedTuple):
    """What one router chose for each token of the batch."""

    experts: Tensor  # (batch, t, k), in ascending order
    margin: Tensor  # (batch, t): how much the scores would have to move to change it


@contextmanager
def routing(model: Model, batch: int) -> Iterator[list[Choice]]:
    """The choices of each router in the model, in order of layers, gathered over all passes made meanwhile."""
    routers = [part.router for part in model.modules() if isinstance(part, _MoE)]
    passes: list[list[Choice]] = [[] for _ in routers]

    def record(into: list[Choice], router: nn.Module, x: Tensor, chosen: Tensor) -> None:
        into.append(
            Choice(
                chosen.sort(-1).values.view(batch, -1, chosen.shape[-1]),
                margin(router, x.flatten(0, -2)).view(batch, -1),
            )
        )

    hooks = [
        router.register_forward_hook(lambda router, args, out, into=into: record(into, router, args[0], out[1]))
        for router, into in zip(routers, passes, strict=True)
    ]
    gathered: list[Choice] = []
    try:
        yield gathered
    finally:
        for hook in hooks:
            hook.remove()
    gathered += [Choice(*(torch.cat(parts, dim=1) for parts in zip(*made, strict=True))) for made in passes]


def margin(router: nn.Module, x: Tensor) -> Tensor:
    """(n, dim) -> (n,) distance between the last chosen and the first not chosen, of experts or of groups of them."""
    spec = router.spec
    if isinstance(spec, zoo.NormedSoftmaxTopK):
        return gap(router.logits(x), spec.k)
    if isinstance(spec, zoo.SoftmaxTopK | zoo.InputScaledTopK):
        return gap(F.linear(x, router.weight, getattr(router, "bias", None)), spec.k)
    if isinstance(spec, zoo.HashTopK):
        return torch.full_like(x[:, 0], float("inf"))
    logits = F.linear(x, router.weight)
    if isinstance(spec, zoo.SqrtSoftplusTopK):
        return gap(F.softplus(logits).sqrt() + router.correction, spec.k)
    scores = logits.sigmoid() + router.correction if hasattr(router, "correction") else logits.softmax(-1)
    grouped = scores.unflatten(-1, (spec.groups, -1))
    best = grouped.topk(2).values.sum(-1)
    worst_kept = best.topk(spec.keep).values[:, -1:]
    kept = grouped.masked_fill((best < worst_kept)[..., None], float("-inf")).flatten(-2)
    return torch.minimum(gap(kept, spec.k), gap(best, spec.keep))


def gap(scores: Tensor, k: int) -> Tensor:
    """(n, choices) -> (n,) the k-th largest less the next, infinite where there is no next."""
    if k == scores.shape[-1]:
        return torch.full_like(scores[:, 0], float("inf"))
    top = scores.topk(k + 1).values
    return top[:, k - 1] - top[:, k]


def ties(one: list[Choice], other: list[Choice]) -> tuple[Tensor, int]:
    """(batch, t) where two runs agree so far, and how many choices a tie decided differently.

    Raises AssertionError where they chose differently though the margin was no tie. A token whose expert differs
    changes what it and every later token of its row hold in the layers above: nothing is asked of those.
    """
    agree, count = torch.ones(()).bool(), 0
    for a, b in zip(one, other, strict=True):
        differ = (a.experts != b.experts).any(-1) & agree
        assert not (differ & (a.margin > BOUND)).any(), "another expert was chosen where there was no tie"
        count += int(differ.sum())
        agree = agree & ~differ.cummax(-1).values
    return agree, count


def is_differentiated(parameter: str) -> bool:
    """Whether the parameter of this name gets a gradient: what chooses experts or tokens gets none, and a
    stored scale of a layer."""
    return not (parameter.endswith((".correction", "output_scale.weight")) or ".indexer." in parameter)


@cache
def has_compiler() -> bool:
    """Whether compiled models can be made here."""
    try:
        find_compiler()
    except NotAvailable:
        return False
    return True
