"""Tiny models of every released composition, with random parameters."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

import zoo
from tests.exact import BOUND, largest_difference
from zoo.catalog import allocate
from zoo.core.inductor import find_compiler
from zoo.errors import NotAvailable
from zoo.model.module import Model


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


def is_well_conditioned(model: Model, tokens: Tensor, expected: Tensor) -> bool:
    """Whether one rounding of every weight moves a float64 model's logits, which are `expected`, by far less than the
    bound. Norms of few channels, one after the other, magnify roundings a thousand times each, and then no two orders
    of sums agree."""
    generator = torch.Generator().manual_seed(0)
    moved = deepcopy(model)
    for weight in moved.parameters():
        sign = torch.randint(0, 2, weight.shape, generator=generator).double() * 2 - 1  # float32 would round it off
        weight.mul_(1 + sign * torch.finfo(torch.float64).eps)
    return largest_difference(moved(tokens), expected) <= BOUND / 100


def choosing_all(spec: zoo.Decoder) -> zoo.Decoder:
    """The spec with routers that choose every expert and indexers that choose every key. Rounding then decides no
    choice, and a narrow dtype only adds its rounding."""

    def of_all(mixture: zoo.MoE) -> zoo.MoE:
        router = mixture.router
        groups = {"keep": router.groups} if hasattr(router, "groups") else {}
        return replace(mixture, router=replace(router, k=mixture.experts, **groups))

    changes = {zoo.MoE: of_all} | dict.fromkeys((zoo.Indexer, zoo.EntryIndexer), lambda indexer: replace(indexer, k=64))
    for kind, change in changes.items():
        if any(isinstance(part, kind) for part in spec.walk()):
            spec = zoo.swap(spec, kind, change)
    return spec


def one_layer_of_each(spec: zoo.Decoder) -> zoo.Decoder:
    """The spec without repeated layers, for tests that need each kind of layer once."""
    return replace(spec, layers=tuple(dict.fromkeys(spec.layers)))


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


def is_differentiated(parameter: str) -> bool:
    """Whether the parameter of this name gets a gradient. Parameters that only choose experts or tokens get none, nor
    does a stored scale of a layer."""
    return not (parameter.endswith((".correction", "output_scale.weight")) or ".indexer." in parameter)


@cache
def has_compiler() -> bool:
    """Whether models can be compiled on this machine."""
    try:
        find_compiler()
    except NotAvailable:
        return False
    return True
