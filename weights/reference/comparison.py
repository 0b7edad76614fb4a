"""parity: the reference and the zoo on the same weights and prompts, compared."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from weights.loading import open_source
from weights.reference.logits import compare
from weights.reference.model import transformers
from weights.reference.prompts import prompts, widest
from weights.reference.report import Report
from weights.reference.routing import agreement
from weights.reference.runs import loaded
from weights.reference.streaming import streamed
from zoo.blocks import MoE
from zoo.errors import UsageError, unknown
from zoo.model.decoder import Decoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
    revision: str | None = None,
    offline: bool = False,
    ignore_fields: Iterable[str] = (),
) -> Report:
    """How equal the zoo's model of a source is to what transformers makes of it, on the CPU.

    `source`, `revision` and `offline` are as for `weights.load`. Prompts have `tokens` tokens, None being enough to
    leave every window: random ids from `seed`, and `text` where the source has a tokenizer. `reference` is another
    source for the reference's weights, `spec` another model for the zoo's: what a conversion or a change of one block
    does. `streaming` holds one layer at a time in memory.

    Raises what `weights.load` raises, and NotAvailable where transformers is not installed.
    """
    kind = _number_type(dtype)
    transformers()
    ours = open_source(source, revision, offline)
    theirs = ours if reference is None else open_source(reference, None, offline)
    spec = ours.spec(ignore_fields) if spec is None else spec
    if reference is not None:
        _comparable(spec, theirs.spec(ignore_fields), f"{source} and {reference}")
    given = prompts(ours.path, spec, tokens, text, seed)
    runs = (streamed if streaming else loaded)(spec, ours, theirs, kind, given.tokens)
    shape = given.tokens.shape[0], given.tokens.shape[1]
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
        logits=compare(runs.reference, runs.full, agree if in_float32 else everywhere),
        cached=compare(runs.full, runs.cached, steady if in_float32 else everywhere),
        exact=None if runs.exact is None else compare(runs.exact, runs.full, everywhere),
        own=None if runs.exact is None else compare(runs.exact, runs.reference, everywhere),
        routed=bool(runs.chosen["reference"]),
        rerouted=rerouted,
        parts=runs.parts,
    )


def _comparable(ours: Decoder, theirs: Decoder, what: str) -> None:
    """Raise UsageError for models of which the one's parts cannot take what went into the other's."""

    def shape(spec: Decoder) -> dict[str, Any]:
        routed = [any(isinstance(part, MoE) for part in layer.ffn.walk()) for layer in spec.layers]
        return {
            "layers": len(spec.layers),
            "width": spec.dim,
            "vocabulary": spec.vocab,
            "layers with experts": sum(routed),
            "places of these": [i for i, has in enumerate(routed) if has],
        }

    pairs = zip(shape(ours).items(), shape(theirs).values(), strict=True)
    if differ := [f"{name} {one} and {other}" for (name, one), other in pairs if one != other]:
        raise UsageError(f"{what} cannot be compared: {', '.join(differ[:4])}")


def _number_type(dtype: str | torch.dtype) -> torch.dtype:
    word = str(dtype).removeprefix("torch.")
    if word not in DTYPES:
        raise unknown("dtype to compare in", word, DTYPES)
    return DTYPES[word]
