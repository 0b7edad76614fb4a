"""Costs for other programs, such as simulators and capacity planners: `zoo.costs_of`. It opens no file and no hub."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from zoo import catalog
from zoo.arguments import count, element_bytes, find_dtype, token_count
from zoo.errors import UsageError
from zoo.hf.estimate import estimate
from zoo.model.decoder import Decoder
from zoo.model.pass_costs import PassCosts, PlainWeights, pass_costs


def costs_of(
    spec_or_config: str | Decoder | dict[str, Any],
    past: int | str = 0,
    new: int | str = 1,
    batch: int = 1,
    dtype: str | torch.dtype = torch.bfloat16,
    tp: int = 1,
    ep: int = 1,
    *,
    cache_dtype: str | torch.dtype | None = None,
    logits: int | None = 1,
    causal: bool = True,
) -> PassCosts:
    """Returns the costs of a forward pass of `new` tokens after `past` in each of `batch` sequences.

    The model is a preset's name, a Decoder, or a config.json as a dict; a config that no family reads is estimated
    (`estimated` is then true). `dtype` is that of weights and activations, and of the cache unless `cache_dtype` is
    given; activations have at least 16 bits. Figures are those of the first of `tp` cards, which hold the model
    together; `ep` is 1, or `tp` for whole experts on each card. `logits`: positions of each sequence that go through
    the head (None: all new ones). `causal=False` counts every pair that a masked dense kernel computes, as torch's FLOP
    counter does.

    `costs_of(...).total` is the sum; `costs_of(...).by("layer", "op")` has a row for each kind of layer and operation.
    Raises UsageError for wrong arguments, for contexts beyond the model's, and for a model that the cards cannot
    divide, and MalformedError for a wrong config.
    """
    spec, estimated = _spec(spec_or_config)
    past, new = token_count(past, "past"), token_count(new, "new", least=1)
    batch, tp, ep = count(batch, "batch"), count(tp, "tp"), count(ep, "ep")
    if spec.context is not None and past + new > spec.context:
        raise UsageError(f"past={past} and new={new} tokens are beyond the model's context of {spec.context} tokens")
    if logits is not None and count(logits, "logits", least=0) > new:
        raise UsageError(f"logits={logits} positions are more than the new={new} tokens")
    weights = PlainWeights(element_bytes(find_dtype(dtype)))
    cache = element_bytes(find_dtype(dtype if cache_dtype is None else cache_dtype))
    return replace(pass_costs(spec, past, new, batch, weights, cache, tp, ep, logits, causal), estimated=estimated)


def _spec(model: str | Decoder | dict[str, Any]) -> tuple[Decoder, bool]:
    """Returns the model, and whether it is an estimate."""
    if isinstance(model, Decoder):
        return model, False
    if isinstance(model, str):
        return catalog.spec(model), False
    if not isinstance(model, dict):
        raise UsageError(f"a model is a name, a Decoder or a config as a dict, not a {type(model).__name__}")
    known = catalog.is_read(model)
    return (catalog.from_hf(model) if known else estimate(model).spec), not known
