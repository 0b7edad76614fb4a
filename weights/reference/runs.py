"""The runs that are compared: the reference, the zoo in one pass and the zoo through a cache, all in memory."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from weights.loading import Source, fill
from weights.reference.layers import Part, Passed, Probe
from weights.reference.meta_model import filled_reference
from weights.reference.model import Reference, load_reference, watched, whole
from weights.reference.routing import choices, gathered
from zoo.model.decoder import Decoder, Model

ALONE = 4  # tokens at the end that go through the cache one by one
log = logging.getLogger(__name__)


@dataclass
class Runs:
    """What the runs of one comparison gave: logits (batch, t, vocab), and the experts that were chosen, layer by
    layer (batch, t, k)."""

    reference: Tensor
    full: Tensor
    cached: Tensor
    exact: Tensor | None  # the reference in float32, where the others are not
    chosen: dict[str, list[Tensor]]  # by the reference, in full, cached
    parts: tuple[Part, ...]
    origin: str


def chunks(length: int) -> list[int]:
    """How a prompt goes through the cache: one half, most of the other, and single tokens."""
    alone = min(ALONE, length - 1)
    half = (length - alone + 1) // 2
    return [size for size in (half, length - alone - half, *[1] * alone) if size]


def loaded(spec: Decoder, ours: Source, theirs: Source, dtype: torch.dtype, tokens: Tensor) -> Runs:
    """Both models in memory, the references one after the other."""
    began = time.perf_counter()
    model = fill(spec, ours, "cpu", dtype)
    began = _told("the zoo's model", began)
    exact = None
    if dtype != torch.float32:
        exact = _reference(theirs, torch.float32).logits(tokens)
        began = _told("the reference in float32", began)
    reference = _reference(theirs, dtype)
    probe = Probe(model, tokens, dtype)
    seen: list[Tensor | None] = []
    last: list[Tensor] = []

    def visit(passed: Passed) -> None:
        if passed.layer == 0:
            probe.embedding(passed.x)
        probe.layer(passed)
        seen.append(passed.experts)
        last[:] = [passed.out]

    with watched(reference, spec, ours.rules, visit):
        logits = reference.logits(tokens)
    probe.head(last[0], logits)
    _told("the reference, and each part by itself", began)
    batch = tokens.shape[0]
    chosen = {"reference": [each.unflatten(0, (batch, -1)) for each in seen if each is not None]}
    full, chosen["full"] = _pass(model, tokens, [tokens.shape[1]])
    cached, chosen["cached"] = _pass(model, tokens, chunks(tokens.shape[1]), in_cache=True)
    return Runs(logits, full, cached, exact, chosen, tuple(probe.parts), reference.origin)


def _pass(model: Model, tokens: Tensor, sizes: list[int], in_cache: bool = False) -> tuple[Tensor, list[Tensor]]:
    """The zoo's logits and choices, in chunks of these sizes."""
    cache = model.new_cache(*tokens.shape) if in_cache else None
    with choices(model) as made:
        logits = torch.cat([model(part, cache) for part in tokens.split(sizes, dim=1)], dim=1)
    return logits, gathered(made, tokens.shape[0])


def _reference(source: Source, dtype: torch.dtype) -> Reference:
    return load_reference(source, dtype) if whole(source) else filled_reference(source, dtype)


def _told(what: str, began: float) -> float:
    """Note what was done and how long it took -> now."""
    now = time.perf_counter()
    log.info("%s: %.1f s", what, now - began)
    return now
