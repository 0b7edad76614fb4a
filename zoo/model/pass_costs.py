"""The costs of a forward pass, by kind of layer and by operation: FLOPs, and the least bytes that it moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from math import ceil
from operator import add
from typing import Any, Protocol

from zoo.blocks.expert_parallel import expert_parallel
from zoo.blocks.layer import Layer
from zoo.costs import Bytes, whole
from zoo.errors import unknown
from zoo.model.decoder import Decoder
from zoo.model.layer_pattern import labels
from zoo.registry import Block
from zoo.sharding import Rank, require_same_ranks

OUTSIDE = "outside the layers"
OPERATIONS = {"attn": "projections"}  # part of the parameters -> the operation that reads it, if that has another name
KEYS = ("layer", "op")


class WeightBytes(Protocol):
    """The bytes of stored weights: a dtype, or codes with scales."""

    @property
    def activation_itemsize(self) -> int:
        """Bytes per element of an activation."""

    def params_bytes(self, params: int) -> Bytes:
        """Returns the bytes of parameters outside the branches of layers."""

    def branch_bytes(self, branch: Block, dim: int) -> Bytes:
        """Returns the bytes of a branch's weights in a model of width `dim`."""


@dataclass(frozen=True)
class PlainWeights:
    """Weights that take `itemsize` bytes per element. Activations take at least two."""

    itemsize: Bytes

    @property
    def activation_itemsize(self) -> int:
        """Bytes per element of an activation."""
        return max(ceil(self.itemsize), 2)

    def params_bytes(self, params: int) -> Bytes:
        """Returns the bytes of parameters."""
        return params * self.itemsize

    def branch_bytes(self, branch: Block, dim: int) -> Bytes:
        """Returns the bytes of a branch's weights in a model of width `dim`."""
        return self.params_bytes(branch.params(dim))


@dataclass(frozen=True)
class Costs:
    """FLOPs and bytes of one card in a forward pass of all sequences.

    `weight_bytes`: weights that are read, each once; of experts, the expected number that a token is routed to.
    `cache_bytes`: the cache after the pass. `cache_read_bytes` and `cache_written_bytes`: its entries of earlier tokens
    that a new token can see, and those of the new tokens; a state is read and written. `activation_bytes`: the residual
    stream, read and written once by each branch, and the logits. `sent_bytes`: sent to other cards.
    """

    flops: int = 0
    weight_bytes: Bytes | float = 0
    cache_bytes: Bytes = 0
    cache_read_bytes: Bytes = 0
    cache_written_bytes: Bytes = 0
    activation_bytes: int = 0
    sent_bytes: float = 0

    @property
    def values(self) -> tuple[Any, ...]:
        """The values of all fields, in order."""
        return tuple(vars(self).values())

    def __add__(self, other: Costs) -> Costs:
        return Costs(*map(add, self.values, other.values))


@dataclass(frozen=True)
class Term:
    """The costs of one operation in all layers of one kind; `layer` is None outside the layers."""

    layer: Layer | None
    op: str
    costs: Costs


@dataclass(frozen=True)
class PassCosts:
    """The costs of a pass of `tokens` tokens of all sequences together, and the terms that add up to them. `layers` are
    those of one card. `estimated`: whether the model is an estimate, since no family reads its config."""

    tokens: int
    layers: tuple[Layer, ...]
    terms: tuple[Term, ...]
    estimated: bool = False

    @cached_property
    def total(self) -> Costs:
        """The sum of all terms."""
        return sum((term.costs for term in self.terms), Costs())

    def by(self, *keys: str) -> list[dict[str, Any]]:
        """Returns one row for each value of the `keys`, "layer", "op" or both. Without keys, one row has the total.

        A row has the keys `layer` and `op` (None if it is summed over), `layers`, the number of layers of this kind (0
        outside the layers), and one key for each cost. Rows are in the order of the model, and what is outside the
        layers comes last. Raises UsageError for another key.
        """
        if wrong := [key for key in keys if key not in KEYS]:
            raise unknown("key of costs", str(wrong[0]), KEYS)
        counted = Counter(self.layers)
        names = dict(zip(counted, labels(self.layers), strict=True))
        summed: dict[tuple[Any, ...], Costs] = {}
        for term in self.terms:
            key = (term.layer if "layer" in keys else None, term.op if "op" in keys else None)
            summed[key] = summed.get(key, Costs()) + term.costs
        rows = []
        for (layer, op), costs in summed.items():
            name = names.get(layer, OUTSIDE) if "layer" in keys else None
            number = (counted[layer] if layer else 0) if "layer" in keys else len(self.layers)
            rows.append({"layer": name, "layers": number, "op": op, **_as_row(costs)})
        return rows


def _as_row(costs: Costs) -> dict[str, Any]:
    values = {field.name: getattr(costs, field.name) for field in fields(Costs)}
    return {name: whole(Fraction(value)) if isinstance(value, Fraction) else value for name, value in values.items()}


def divided(spec: Decoder, ep: int) -> Decoder:
    """Returns the spec that cards divide: by the width of each expert or, with `ep` above 1, by whole experts."""
    return expert_parallel(spec) if ep > 1 else spec


def first_shard(spec: Decoder, tp: int, ep: int) -> Decoder:
    """Returns the shard of the first of `tp` cards. Raises SpecError for a model that they cannot divide."""
    require_same_ranks(tp, ep)
    return spec if tp == 1 else divided(spec, ep).shard(Rank(0, tp))


def pass_costs(
    spec: Decoder,
    past: int,
    new: int,
    batch: int,
    weights: WeightBytes,
    cache_itemsize: Bytes,
    tp: int = 1,
    ep: int = 1,
    logits: int | None = 1,
    causal: bool = True,
) -> PassCosts:
    """Returns the costs of a pass of `new` tokens after `past` in each of `batch` sequences, for the first of `tp`
    cards. `ep`, `logits` and `causal` are those of `first_shard` and `Decoder.flops`."""
    part, tokens, itemsize = first_shard(spec, tp, ep), batch * new, weights.activation_itemsize
    undivided = divided(spec, ep)
    terms = []
    for (layer, whole_layer), count in Counter(zip(part.layers, undivided.layers, strict=True)).items():
        of_sequences = [
            *((op, Costs(flops=flops)) for op, flops in layer.flop_breakdown(part.dim, past, new, causal).items()),
            *_cache(layer, past, new, cache_itemsize),
            *_stream(layer, part, new, itemsize),
        ]
        of_pass = [(op, Costs(weight_bytes=nbytes)) for op, nbytes in _layer_weights(layer, part, tokens, weights)]
        if tp > 1:
            sent = sum(each.sent(tokens, itemsize, tp) for each in whole_layer.exchanges(spec.dim, tp))
            of_pass.append(("collectives", Costs(sent_bytes=sent)))
        terms += [Term(layer, op, _times(count * batch, costs)) for op, costs in of_sequences]
        terms += [Term(layer, op, _times(count, costs)) for op, costs in of_pass]
    kept = batch * (new if logits is None else logits)
    flops = _outside_flops(part, past, new, logits, causal)
    terms += [Term(None, op, Costs(flops=batch * number)) for op, number in flops.items()]
    terms += [Term(None, op, costs) for op, costs in _outside(part, tokens, kept, weights)]
    if tp > 1:
        before = undivided.exchanges(spec.dim, tp)  # the embedding's come first, then those of the layers
        inside = sum(len(layer.exchanges(spec.dim, tp)) for layer in undivided.layers)
        sent = sum(each.sent(tokens, itemsize, tp) for each in before[: len(before) - inside])
        sent += undivided.head_exchange(tp).sent(kept, itemsize, tp)
        terms.append(Term(None, "collectives", Costs(sent_bytes=sent)))
    return PassCosts(tokens, part.layers, tuple(terms))


def _times(count: int, costs: Costs) -> Costs:
    return Costs(*(count * value for value in costs.values))


def _outside_flops(spec: Decoder, past: int, new: int, logits: int | None, causal: bool) -> Counter[str]:
    """Returns the FLOPs by part that are in no layer."""
    found = Counter(spec.flop_breakdown(past, new, logits, causal))
    for layer, count in Counter(spec.layers).items():
        inside = layer.flop_breakdown(spec.dim, past, new, causal)
        found.subtract({part: count * flops for part, flops in inside.items()})
    return +found


def _layer_weights(
    layer: Layer, spec: Decoder, tokens: int, weights: WeightBytes
) -> Iterator[tuple[str, Bytes | float]]:
    """Yields (operation, expected bytes of the weights that it reads) for a layer: for each branch, the parameters that
    are read times the branch's mean bytes per parameter."""
    rest = Counter(layer.param_breakdown(spec.dim))
    for branch in filter(None, (layer.attn, layer.ffn)):
        parts = branch.param_breakdown(spec.dim)
        rest.subtract(parts)
        params = branch.params(spec.dim)
        nbytes = weights.branch_bytes(branch, spec.dim)
        idle = params - branch.read_params(spec.dim, tokens)
        for part, number in parts.items():
            share = Fraction(number, params) if part != "routed" or not idle else (number - idle) / params
            yield OPERATIONS.get(part, part), nbytes * share
    for part, number in (+rest).items():
        yield OPERATIONS.get(part, part), weights.params_bytes(number)


def _cache(layer: Layer, past: int, new: int, itemsize: Bytes) -> Iterator[tuple[str, Costs]]:
    """Yields the costs of a layer's cache for one sequence, under the operation that reads it."""
    cache = layer.cache_spec()
    nbytes = cache.nbytes(past + new, itemsize)
    if nbytes and layer.attn:
        parts = layer.attn.flop_breakdown(1, past, new)
        moved = cache.read_bytes(past, new, itemsize), cache.written_bytes(past, new, itemsize)
        yield "scores" if "scores" in parts else next(iter(parts)), Costs(0, 0, nbytes, *moved)


def _stream(layer: Layer, spec: Decoder, new: int, itemsize: int) -> Iterator[tuple[str, Costs]]:
    """Yields the bytes of the residual stream that each branch reads and writes, for one sequence."""
    streams = spec.streams.count if spec.streams else 1
    for _, branch in layer.branches():
        op = next(iter(branch.block.flop_breakdown(spec.dim, 0, 1)))
        yield op, Costs(activation_bytes=2 * new * spec.dim * streams * itemsize)


def _outside(spec: Decoder, tokens: int, kept: int, weights: WeightBytes) -> Iterator[tuple[str, Costs]]:
    """Yields the bytes that are moved outside the layers, for all sequences."""
    params, read = Counter(spec.param_breakdown()), spec.read_params(tokens)
    for layer, count in Counter(spec.layers).items():
        params.subtract({name: count * number for name, number in layer.param_breakdown(spec.dim).items()})
        read -= count * layer.read_params(spec.dim, tokens)
    params["embedding"] -= params.total() - round(read)  # rows of tokens that do not occur
    for name, number in (+params).items():
        yield "head" if name == "embedding" and spec.tied else name, Costs(weight_bytes=weights.params_bytes(number))
    itemsize = weights.activation_itemsize
    yield "embedding", Costs(activation_bytes=tokens * spec.dim * itemsize)
    yield "head", Costs(activation_bytes=kept * (spec.dim + spec.vocab) * itemsize)
