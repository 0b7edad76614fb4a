"""The spec of a whole model (embedding, layers, norm, head), and the model's costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from inspect import Parameter, signature
from math import ceil
from typing import Any, ClassVar, Self

import torch

from zoo.arguments import count, element_bytes, find_dtype, token_count
from zoo.blocks.hyper_connections import Streams
from zoo.blocks.layer import Layer
from zoo.blocks.norms import Norm
from zoo.blocks.per_layer import PerLayerInputs
from zoo.blocks.positions import LearnedPositions
from zoo.blocks.routers import HashTopK
from zoo.costs import Breakdown, linear_flops, sum_breakdowns, whole
from zoo.errors import SpecError
from zoo.facts import Fact
from zoo.registry import Spec, fields_in_use, require_spec, swap
from zoo.sharding import Cut, Cuts, Divide, Exchange, FirstRankOnly, Rank, prefixed


@dataclass(frozen=True)
class Decoder(Spec):
    """A decoder-only transformer: `layers` holds one spec per layer.

    `tied`: the head uses the embedding's matrix. `embed_scale` multiplies embeddings. `context`: the maximum number of
    positions after training and context extension; None if unpublished. `positions` are added to embeddings. Logits are
    divided by `logits_scaling` (Granite). With a `logit_cap`, logits x become cap * tanh(x / cap) (Gemma 2). With
    `per_layer`, every layer has its own input (Gemma 4 E2B). With `streams`, there are several residual streams, and
    every branch of every layer has the same `streams` (DeepSeek-V4).
    """

    vocab: int
    dim: int
    layers: tuple[Layer, ...]
    norm: Norm
    tied: bool = False
    embed_scale: float = 1.0
    context: int | None = None
    positions: LearnedPositions | None = None
    logits_scaling: float = 1.0
    logit_cap: float | None = None
    per_layer: PerLayerInputs | None = None
    streams: Streams | None = None

    divides: ClassVar = {"vocab": Divide.ANY}

    def check(self) -> None:
        self.require(len(self.layers) > 0, "a model needs at least one layer")
        handed_on: set[Hashable] = set()
        for i, layer in enumerate(self.layers):
            missing = [words for key, words in layer.takes().items() if key not in handed_on]
            self.require(not missing, f"layer {i} takes {', '.join(missing)}, which no earlier layer hands on")
            handed_on.update(layer.hands_on())
        width = self.per_layer.width if self.per_layer else None
        widths = {layer.input_width for layer in self.layers}
        self.require(widths == {width}, f"layers take inputs of {widths}, per_layer has {width}")
        said = self.streams.describe() if self.streams else "one residual stream"
        same = {layer.stream_spec for layer in self.layers} == {self.streams}
        self.require(same, f"the model has {said}, which every layer must have too: norm=hyper gives all four streams")
        kinds = {id(layer): layer for layer in self.layers}.values()
        routers = (layer.mixture.router for layer in kinds if layer.mixture)
        few = min((router.table_rows for router in routers if router.table_rows), default=self.vocab)
        self.require(few >= self.vocab, f"a hash router has a table of {few} tokens, the vocabulary {self.vocab}")

    def shard(self, rank: Rank) -> Self:
        """Returns the spec of one rank's shard: a part of the vocabulary, and a part of each block."""
        parts = {layer: layer.shard(rank) for layer, _ in self._counted}
        layers = tuple(parts[layer] for layer in self.layers)
        return replace(self, vocab=len(rank.held(self.vocab, Divide.ANY, "vocab")), layers=layers)

    def cuts(self) -> Cuts:
        vocab, by_layer = self.cut("vocab"), {layer: layer.cuts() for layer, _ in self._counted}
        found: dict[str, Cut | FirstRankOnly] = dict.fromkeys(("embed", "head", "per_layer.embed"), vocab)
        for i, layer in enumerate(self.layers):
            found |= prefixed(f"layers.{i}", by_layer[layer])
        return found

    def exchanges(self, dim: int, ranks: int) -> tuple[Exchange, ...]:
        """Returns the exchanges of `ranks` ranks for each token before the head. Embedding rows are all-reduced,
        because each row is held by a single rank."""
        rows = [self.dim, *([len(self.layers) * self.per_layer.width] if self.per_layer else [])]
        by_layer = {layer: layer.exchanges(dim, ranks) for layer, _ in self._counted}
        layers = (each for layer in self.layers for each in by_layer[layer])
        return *(Exchange("all-reduce", width) for width in rows), *layers

    def head_exchange(self, ranks: int) -> Exchange:
        """Returns the exchange for each position that goes through the head: an all-gather of the logits, of which
        every rank is assumed to hold an equal share."""
        return Exchange("all-gather", ranks * -(-self.vocab // ranks))

    def with_vocab(self, vocab: int) -> Decoder:
        """Returns this model with another vocabulary size, also in the tables of hash routers."""
        new = {
            layer: swap(layer, HashTopK, lambda router: replace(router, vocab=vocab)) if layer.reads_tokens else layer
            for layer in dict.fromkeys(self.layers)
        }
        return replace(self, vocab=vocab, layers=tuple(new[layer] for layer in self.layers))

    def params(self) -> int:
        """The number of stored values. A tied head counts once."""
        return sum(self.param_breakdown().values())

    def active_params(self) -> int:
        """The number of stored values that one token uses: all except those of experts that it is not routed to."""
        return self._outside_params() + sum(n * layer.active_params(self.dim) for layer, n in self._counted)

    def read_params(self, tokens: int) -> float:
        """The expected number of stored values that a forward pass of `tokens` tokens in all sequences reads. It reads
        one row per token of an untied embedding, and the experts that at least one token is routed to."""
        unread = max(self.vocab - tokens, 0) * (0 if self.tied else self.dim)
        if self.per_layer:
            unread += self.per_layer.table_params(max(self.vocab - tokens, 0), len(self.layers))
        layers = sum(n * layer.read_params(self.dim, tokens) for layer, n in self._counted)
        return self._outside_params() - unread + layers

    def param_breakdown(self) -> Breakdown:
        """Returns `params` by part: embedding, head (0 if tied), and the parts of the blocks."""
        return sum_breakdowns([*self._outside(), *((n, layer.param_breakdown(self.dim)) for layer, n in self._counted)])

    def embedding_params(self) -> int:
        """The number of stored values of the embedding, learned positions, the table of per-layer inputs, and an untied
        head."""
        outside = sum_breakdowns(self._outside())
        return outside["embedding"] + outside["head"]

    def flops(self, past: int, new: int, logits: int | None = None, causal: bool = True) -> int:
        """FLOPs of a forward pass of `new` tokens after `past`, for one sequence, by the convention of zoo.costs.

        `logits`: the number of positions that go through the head (None: all `new`). `causal=False` counts every pair
        that a masked dense kernel computes, as torch's FLOP counter does.
        """
        return sum(self.flop_breakdown(past, new, logits, causal).values())

    def flop_breakdown(self, past: int, new: int, logits: int | None = None, causal: bool = True) -> Breakdown:
        """Returns `flops` by part: head, and the parts of the blocks."""
        past, new = token_count(past, "past"), token_count(new, "new", least=1)
        kept = new if logits is None else count(logits, "logits", least=0)
        outside = {"head": linear_flops(kept, self.dim, self.vocab)}
        if self.per_layer:
            outside["inputs"] = self.per_layer.flops(self.dim, len(self.layers), new)
        if self.streams:
            outside["streams"] = self.streams.flops(self.dim, kept)
        layers = ((n, layer.flop_breakdown(self.dim, past, new, causal)) for layer, n in self._counted)
        return sum_breakdowns([*layers, (1, outside)])

    def kv_bytes(self, context: int | str, batch: int = 1, dtype: str | torch.dtype = torch.bfloat16) -> int:
        """Bytes of a cache for `batch` sequences of `context` tokens, as `new_cache(batch, context)` allocates it.

        `context` may be a text such as "32k", and `dtype` a name such as "fp8". Two 4-bit elements share a byte.
        """
        context, batch = token_count(context, "context"), count(batch, "batch")
        itemsize = element_bytes(find_dtype(dtype))
        caches = ((layer.cache_spec(), n) for layer, n in self._counted)
        return ceil(batch * sum(n * cache.nbytes(context, itemsize) for cache, n in caches))

    def kv_growth(self, dtype: str | torch.dtype = torch.bfloat16) -> tuple[float, float]:
        """Returns (fixed bytes, bytes per token) of one sequence's cache. They are exact once every window is full; if
        entries stand for several tokens, only at multiples of that number. States are fixed bytes. A whole figure is an
        int."""
        itemsize = element_bytes(find_dtype(dtype))
        terms = [(n, *layer.cache_spec().growth(itemsize)) for layer, n in self._counted]
        return whole(sum(n * fixed for n, fixed, _ in terms)), whole(
            sum((n * slope for n, _, slope in terms), Fraction())
        )

    def facts(self) -> tuple[Fact, ...]:
        optional = (
            Fact("tied", phrase="tied head"),
            Fact("logit_cap", self.logit_cap, phrase="logits capped at {:g}", noun="logit cap"),
            Fact("positions", self.positions, phrase="learned positions"),
            Fact("embed_scale", self.embed_scale, phrase="embedding scale {:.4g}", noun="embedding scale"),
            Fact("logits_scaling", self.logits_scaling, phrase="logits divided by {:.4g}", noun="logit divisor"),
            Fact("streams", self.streams, noun="parallel residual streams"),
            Fact("per_layer", phrase="a token embedding for each layer", noun="per-layer embeddings"),
        )
        in_use = fields_in_use(self)
        return Fact("kind", "Decoder"), Fact("context", ""), *(fact for fact in optional if fact.key in in_use)

    def describe(self) -> str:
        return f"{len(self.layers)} layers of width {self.dim}, {self.vocab:,} tokens"

    def _outside(self) -> list[tuple[int, Breakdown]]:
        """Returns (1, its parameters) for each component outside the layers, as pairs for `sum_breakdowns`."""
        table, positions = self.vocab * self.dim, self.positions.params(self.dim) if self.positions else 0
        parts: list[Breakdown] = [{"embedding": table + positions, "head": 0 if self.tied else table}]
        parts.append(self.norm.param_breakdown(self.dim))
        if self.per_layer:
            parts.append(self.per_layer.param_breakdown(self.dim, self.vocab, len(self.layers)))
        if self.streams:
            parts.append(self.streams.param_breakdown(self.dim))
        return [(1, part) for part in parts]

    def _outside_params(self) -> int:
        return sum(sum_breakdowns(self._outside()).values())

    @cached_property
    def parts(self) -> tuple[Spec, ...]:
        """Every spec inside this spec, outermost first. Equal layers count once."""
        return tuple(part for child in dict.fromkeys(child for _, child in self.children()) for part in child.walk())

    @cached_property
    def _counted(self) -> tuple[tuple[Layer, int], ...]:
        """(layer, count) for each distinct layer. Cached: hashing all layers takes longer than computing a cost."""
        return tuple(Counter(self.layers).items())


def swap_layers(
    spec: Decoder,
    which: Callable[[int], bool],
    kind: type[Spec],
    change: Spec | Callable[[Any], Spec] | Callable[[Any, int], Spec],
) -> Decoder:
    """Applies `swap` to every layer for whose index i `which(i)` is true. If `change` is a function of two arguments,
    the second is that index: lambda attn, i: ... Raises SpecError if no layer is chosen, or if a chosen layer contains
    no spec of `kind`."""
    require_spec(spec, "swap_layers", kind)
    chosen = {i for i in range(len(spec.layers)) if which(i)}
    if not chosen:
        raise SpecError(f"nothing to swap: none of the {len(spec.layers)} layers was chosen")
    function: Any = change
    with_index = _takes_index(change)

    def changed(layer: Layer, i: int) -> Layer:
        return swap(layer, kind, (lambda old: function(old, i)) if with_index else function)

    layers = (changed(layer, i) if i in chosen else layer for i, layer in enumerate(spec.layers))
    return replace(spec, layers=tuple(layers))


def _takes_index(change: Any) -> bool:
    """Whether `change` is a function with exactly two required arguments."""
    try:
        arguments = signature(change).parameters.values()
    except (TypeError, ValueError):  # a spec, or a function without a signature
        return False
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional and each.default is Parameter.empty for each in arguments) == 2
