"""Rows about estimated models: what an estimate rests on, its bounds, and its difference from the stored tensors."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from math import log
from typing import NamedTuple

from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import NamedSpec, about, stored_params, stored_parts
from zoo.catalog import sizes
from zoo.cli.tables import Row
from zoo.errors import SpecError
from zoo.hf.estimate import Estimate
from zoo.model.decoder import Decoder
from zoo.swaps.differences import structure_differences

KV_CONTEXT, FLOPS_CONTEXT = 32 * 1024, 4096  # tokens
# Group of parameters -> the parts of a Decoder and of stored tensors in it.
GROUPS = {
    "embedding": ("embedding", "head"),
    "attention": ("attn", "indexer"),
    "feed-forward": ("ffn",),
    "experts": ("routed", "shared", "router"),
    "norms": ("norm",),
    "other": ("inputs", "streams", "other"),
}
FIELDS_ONLY = (
    "No safetensors files: parameters that no field names (norms inside blocks, biases, gates) are not counted. Give a "
    "folder with the files, or a hub id, for the exact number"
)


class Bounded(NamedTuple):
    """A cost with bounds: its name, its unit, and its function of a Decoder."""

    figure: str
    unit: str
    of: Callable[[Decoder], float]


def bounded(config: InferenceConfig) -> tuple[Bounded, ...]:
    """Returns the costs that an estimate has bounds of."""
    return (
        Bounded("parameters", "parameters", lambda spec: spec.params()),
        Bounded("active parameters", "parameters", lambda spec: spec.active_params()),
        Bounded("KV cache, fixed", "bytes", lambda spec: spec.kv_growth(config.cache)[0]),
        Bounded("KV cache per token", "bytes", lambda spec: spec.kv_growth(config.cache)[1]),
        Bounded("KV cache at 32k", "bytes", lambda spec: spec.kv_bytes(KV_CONTEXT, config.batch, config.cache)),
        Bounded("FLOPs per token at 4k", "FLOPs", lambda spec: spec.flops(FLOPS_CONTEXT - 1, 1)),
    )


def bound_rows(model: NamedSpec, config: InferenceConfig) -> list[Row]:
    """Returns one row for each cost of an estimated model, with the bounds that the open questions leave."""
    specs = list(_shards(model.estimate.specs if model.estimate else (model.spec,), config))
    rows = []
    for figure, unit, of in bounded(config):
        values = [of(spec) for spec in specs]
        if stored_parts(model) and unit == "parameters":
            values = [stored_params(model)[figure == "active parameters"]]
        row = {"figure": figure, "unit": unit, "value": values[0], "low": min(values), "high": max(values)}
        rows.append({"table": "bounds", **about(model), **row})
    return rows


def _shards(specs: Iterable[Decoder], config: InferenceConfig) -> Iterator[Decoder]:
    """Yields the first card's shard of each spec that the cards can divide."""
    for spec in specs:
        with suppress(SpecError):
            yield config.part(spec)


def ground_rows(model: NamedSpec) -> Iterator[Row]:
    """Yields one row for each thing that an estimate rests on: the nearest model, each field that was used, each open
    question, each note, and each field that was not understood."""
    guess = model.estimate
    if guess is None:
        return
    like = nearest(guess)
    described = ", ".join(each.sentence for each in structure_differences(guess.spec, sizes()[like].spec))
    source = f"{len(guess.stored.text):,} stored tensors and the config" if guess.stored else FIELDS_ONLY
    found = [("source", "parameters", source)]
    found += [("nearest", like, described or "the same structure")]
    found += [("used", field, meaning) for field, meaning in guess.used]
    found += [("question", question, " / ".join(answers)) for question, answers in guess.questions]
    found += [("note", "", note) for note in guess.notes]
    found += [("not understood", field, value) for field, value in guess.unread]
    for ground, field, meaning in found:
        yield {"table": "grounds", **about(model), "ground": ground, "field": field, "meaning": meaning}


def stored_rows(model: NamedSpec) -> Iterator[Row]:
    """Yields one row for each group of parameters, with their number in the headers and in the estimate, and one for
    each thing that the files hold beside the language model."""
    stored, estimated = stored_parts(model), model.spec.param_breakdown()
    if model.estimate is None or model.estimate.stored is None:
        return
    groups: dict[str, tuple[int, int | None]] = {
        group: (sum(stored.get(part, 0) for part in parts), sum(estimated.get(part, 0) for part in parts))
        for group, parts in GROUPS.items()
    }
    beside = model.estimate.stored.breakdown(len(model.spec.layers), model.spec.tied)[1]
    groups |= {f"beside: {what}": (count, None) for what, count in beside.items()}
    for group, (count, guess) in groups.items():
        row = {"group": group, "stored": count, "estimate": guess, "off_by": None if guess is None else guess - count}
        yield {"table": "stored", **about(model), **row}


def nearest(guess: Estimate) -> str:
    """Returns the published size with the most similar structure and, among equally similar ones, the nearest number of
    parameters."""
    total = guess.spec.params()

    def distance(name: str) -> tuple[int, float]:
        size = sizes()[name]
        return len(structure_differences(guess.spec, size.spec)), abs(log(total / size.params))

    return min(sizes(), key=distance)
