"""parity: the reference and the zoo on the same weights and prompts, compared."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from weights.loading import Source, fill, open_source
from weights.parity_layers import Part, Passed, Probe
from weights.parity_measure import Logits, compare, held
from weights.parity_prompts import prompts, widest
from weights.parity_reference import load_reference, transformers, watched
from weights.parity_report import Report
from weights.parity_routing import agreement, choices, gathered
from zoo.decoder import Decoder, Model
from zoo.errors import unknown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ALONE = 4  # tokens at the end that go through the cache one by one
log = logging.getLogger(__name__)


@dataclass
class Runs:
    """What the runs of one comparison gave: logits, and the experts that were chosen, layer by layer (batch, t, k)."""

    reference: Logits
    full: Logits
    cached: Logits
    exact: Logits | None  # the reference in float32, where the others are not
    chosen: dict[str, list[Tensor]]  # by the reference, in full, cached
    parts: tuple[Part, ...]
    origin: str


@torch.no_grad()
def parity(
    source: str | Path,
    *,
    tokens: int | None = None,
    dtype: str | torch.dtype = "float32",
    seed: int = 0,
    text: str | None = None,
    reference: str | Path | None = None,
    spec: Decoder | None = None,
    streaming: bool = False,
    ignore_fields: Iterable[str] = (),
) -> Report:
    """How equal the zoo's model of a source is to what transformers makes of it, on the CPU.

    Prompts have `tokens` tokens, None being enough to leave every window: random ids from `seed`, and `text` where the
    source has a tokenizer. `reference` is another source for the reference's weights, `spec` another model for the
    zoo's: what a conversion or a change of one block does. `streaming` holds one layer at a time in memory.

    Raises what `weights.load` raises, and NotAvailable where transformers is not installed.
    """
    kind = _number_type(dtype)
    transformers()
    ours = open_source(source)
    theirs = ours if reference is None else open_source(reference)
    spec = ours.spec(ignore_fields) if spec is None else spec
    given = prompts(ours.path, spec, tokens, text, seed)
    runs = (_streamed if streaming else _loaded)(spec, ours, theirs, kind, given.tokens)
    shape, vocab = (given.tokens.shape[0], given.tokens.shape[1]), spec.vocab
    everywhere = torch.ones(shape, dtype=torch.bool)
    agree, rerouted = agreement(runs.chosen["reference"], runs.chosen["full"], shape)
    steady, _ = agreement(runs.chosen["full"], runs.chosen["cached"], shape)
    in_float32 = runs.exact is None
    return Report(
        source=str(source),
        parameters=spec.params(),
        dtype=str(kind).removeprefix("torch."),
        prompts=given.rows,
        length=shape[1],
        seed=seed,
        window=widest(spec),
        streaming=streaming,
        reference=f"transformers {transformers().__version__}, eager attention, {runs.origin}",
        logits=compare(runs.reference, runs.full, agree if in_float32 else everywhere, vocab),
        cached=compare(runs.full, runs.cached, steady if in_float32 else everywhere, vocab),
        exact=None if runs.exact is None else compare(runs.exact, runs.full, everywhere, vocab),
        own=None if runs.exact is None else compare(runs.exact, runs.reference, everywhere, vocab),
        rerouted=rerouted,
        parts=runs.parts,
    )


def _number_type(dtype: str | torch.dtype) -> torch.dtype:
    word = str(dtype).removeprefix("torch.")
    if word not in DTYPES:
        raise unknown("dtype to compare in", word, DTYPES)
    return DTYPES[word]


def chunks(length: int) -> list[int]:
    """How a prompt goes through the cache: one half, most of the other, and single tokens."""
    alone = min(ALONE, length - 1)
    half = (length - alone + 1) // 2
    return [size for size in (half, length - alone - half, *[1] * alone) if size]


def _loaded(spec: Decoder, ours: Source, theirs: Source, dtype: torch.dtype, tokens: Tensor) -> Runs:
    """Both models in memory, the references one after the other."""
    began = time.perf_counter()
    model = fill(spec, ours, "cpu", dtype)
    began = _told("the zoo's model", began)
    exact = None
    if dtype != torch.float32:
        exact = held(load_reference(theirs, torch.float32).logits(tokens))
        began = _told("the reference in float32", began)
    reference = load_reference(theirs, dtype)
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
    probe.head(last[0], held(logits))
    _told("the reference, and each part by itself", began)
    batch = tokens.shape[0]
    chosen = {"reference": [each.unflatten(0, (batch, -1)) for each in seen if each is not None]}
    full, chosen["full"] = _pass(model, tokens, [tokens.shape[1]])
    cached, chosen["cached"] = _pass(model, tokens, chunks(tokens.shape[1]), in_cache=True)
    return Runs(held(logits), held(full), held(cached), exact, chosen, tuple(probe.parts), reference.origin)


def _pass(model: Model, tokens: Tensor, sizes: list[int], in_cache: bool = False) -> tuple[Tensor, list[Tensor]]:
    """The zoo's logits and choices, in chunks of these sizes."""
    cache = model.new_cache(*tokens.shape) if in_cache else None
    with choices(model) as made:
        logits = torch.cat([model(part, cache) for part in tokens.split(sizes, dim=1)], dim=1)
    return logits, gathered(made, tokens.shape[0])


def _streamed(spec: Decoder, ours: Source, theirs: Source, dtype: torch.dtype, tokens: Tensor) -> Runs:
    raise NotImplementedError


def _told(what: str, began: float) -> float:
    """Note what was done and how long it took -> now."""
    now = time.perf_counter()
    log.info("%s: %.1f s", what, now - began)
    return now
