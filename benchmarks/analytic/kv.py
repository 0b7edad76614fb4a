"""The KV cache: its bytes by context, the usual formula, the longest context that fits, and crossings of two caches."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, inf, lcm
from typing import Any

import torch

from benchmarks.analytic.models import NamedSpec, about
from benchmarks.analytic.weight_forms import BFLOAT16, RELEASED, WeightForm
from zoo.arguments import element_bytes
from zoo.blocks import GQA, MLA, KVSource, SharedKV
from zoo.cli.tables import Row
from zoo.costs import Bytes, whole
from zoo.model.decoder import Decoder
from zoo.model.pass_costs import PassCosts, divided, first_shard, pass_costs
from zoo.registry import Mixer
from zoo.sharding import require_same_ranks
from zoo.units import dtype_name

# The usual formula of each kind of mixer, and the elements per token that it gives for a mixer in a model of width dim.
USUAL_FORMULAS: dict[type[Mixer], tuple[str, Callable[[Any, int], Fraction]]] = {
    **dict.fromkeys(
        (GQA, KVSource, SharedKV),
        (
            "2 x kv_heads x dim / heads elements per layer and token, windows ignored",
            lambda mixer, dim: Fraction(2 * mixer.kv_heads * dim, mixer.heads),
        ),
    ),
    MLA: (
        "heads x (nope_dim + rope_dim + v_dim) elements per layer and token, the latent expanded",
        lambda mixer, dim: Fraction(mixer.heads * (mixer.nope_dim + mixer.rope_dim + mixer.v_dim)),
    ),
}


@dataclass(frozen=True)
class InferenceConfig:
    """The conditions of a model's inference: batch size, formats, and the number of cards.

    `batch` counts sequences. `weights` is the format of the weights; RELEASED means the format that each model was
    released in. `cache` is the dtype of the cache. `tp` cards share the model (tensor parallel); if `ep` equals `tp`,
    each card holds whole experts (expert parallel). Figures are for the first card: no other card holds more.
    """

    batch: int = 1
    weights: WeightForm = BFLOAT16
    cache: torch.dtype = torch.bfloat16
    tp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        require_same_ranks(self.tp, self.ep)

    def of(self, model: NamedSpec) -> "InferenceConfig":
        """Returns this config for one model, with RELEASED replaced by the model's released format."""
        return replace(self, weights=model.released_form) if self.weights is RELEASED else self

    def describe(self) -> Row:
        """Returns the first entries of a row: batch, cache dtype and the number of cards."""
        return {"batch": self.batch, "cache_dtype": dtype_name(self.cache), "tp": self.tp, "ep": self.ep}

    def divided(self, spec: Decoder) -> Decoder:
        """Returns the spec that cards divide: by the width of each expert or, with `ep`, by whole experts."""
        return divided(spec, self.ep)

    def part(self, spec: Decoder) -> Decoder:
        """Returns the shard of the first card. Raises SpecError for a model that `tp` cards cannot divide."""
        return first_shard(spec, self.tp, self.ep)

    def costs(self, spec: Decoder, past: int, new: int) -> PassCosts:
        """Returns the costs of a pass of `new` tokens after `past` in each sequence, whose last logits are computed."""
        return pass_costs(spec, past, new, self.batch, self.weights, element_bytes(self.cache), self.tp, self.ep)


@dataclass(frozen=True)
class Piece:
    """The bytes of one sequence's cache, for contexts from `start` tokens to the start of the next piece.

    The cache takes fixed + per_token * context bytes. Each pair (bytes, every) in `entries` adds `bytes` for each
    started block of `every` tokens.
    """

    start: int
    fixed: float
    per_token: float
    entries: tuple[tuple[float, int], ...] = ()

    @property
    def block(self) -> int:
        """Period of the growth, in tokens: every `block` tokens add the same bytes."""
        return lcm(*(every for _, every in self.entries))

    @property
    def slope(self) -> Fraction:
        """Mean bytes per token, exact between multiples of `block` tokens."""
        return Fraction(self.per_token) + sum((Fraction(nbytes) / every for nbytes, every in self.entries), Fraction())

    def at(self, context: int) -> int:
        """Returns the bytes at this context, which must lie in the piece."""
        entries = sum(nbytes * -(-context // every) for nbytes, every in self.entries)
        return ceil(self.fixed + self.per_token * context + entries)


@dataclass(frozen=True)
class Change:
    """The `sign` of (the first model's bytes - the second's), from a context of `start` tokens to the next change."""

    start: int
    sign: int


def pieces(spec: Decoder, dtype: torch.dtype) -> list[Piece]:
    """Returns the pieces of a model's cache, the first from 0 tokens. A new piece starts where a window is full.

    States of a fixed size count from the first token on.
    """
    caches = [layer.cache_spec() for layer in spec.layers]
    itemsize = element_bytes(dtype)
    layers = [(whole(cache.elements() * itemsize), cache.reach.limit) for cache in caches]
    kept: dict[int, Bytes] = defaultdict(int)  # by the number of tokens per entry
    for entries in (entries for cache in caches for entries in cache.entries):
        kept[entries.every] += entries.elements * itemsize
    by_block = tuple((whole(nbytes), every) for every, nbytes in sorted(kept.items()))
    states = whole(sum(cache.state_bytes(itemsize) for cache in caches))
    found = []
    for start in sorted({0, *(limit for _, limit in layers if limit is not None)}):
        full = [(size, limit) for size, limit in layers if limit is not None and limit <= start]
        per_token = sum(size for size, _ in layers) - sum(size for size, _ in full)
        found.append(Piece(start, states + sum(size * limit for size, limit in full), per_token, by_block))
    return found


def changes(first: Sequence[Piece], second: Sequence[Piece]) -> list[Change]:
    """Returns each change of sign of the difference between two caches, in order of context. The first entry starts at
    1 token.

    A cache whose entries cover several tokens grows in steps, and may cross another cache many times. Such caches are
    compared at common multiples of their blocks. A change starts within the block before the first multiple with the
    new sign: at the first context from which this sign holds up to the multiple.
    """

    def sign(context: int) -> int:
        difference = _piece(first, context).at(context) - _piece(second, context).at(context)
        return (difference > 0) - (difference < 0)

    found: list[Change] = []
    step = lcm(first[0].block, second[0].block)
    starts = sorted({piece.start for piece in (*first, *second)})
    for start, end in zip(starts, [*starts[1:], inf], strict=True):
        a, b = (_piece(growth, start) for growth in (first, second))
        fixed, slope = a.fixed - b.fixed, a.slope - b.slope
        # The sign of fixed + slope * n changes at the first multiple at or above the root, and at the next one.
        root = ceil(-fixed / slope / step) * step if slope else 0
        lowest = max(ceil(Fraction(start, step)), 1) * step
        contexts = {1 if start == 0 else lowest, lowest, *(n for n in (root, root + step) if slope and n > lowest)}
        for n in sorted(n for n in contexts if n < end):
            if not found:
                found.append(Change(n, sign(n)))
            elif found[-1].sign != (new := sign(n)):
                least = max(n - step, found[-1].start)
                while n - 1 > least and sign(n - 1) == new:
                    n -= 1
                found.append(Change(n, new))
    return found


def _piece(growth: Sequence[Piece], context: int) -> Piece:
    """Returns the piece that holds a context."""
    return [piece for piece in growth if piece.start <= context][-1]


def longest(growth: Sequence[Piece], free: int) -> int | None:
    """Returns the longest context whose cache takes at most `free` bytes: 0 if no context fits, None if all fit."""
    for piece, following in reversed(list(zip(growth, [*growth[1:], None], strict=True))):
        if piece.at(piece.start) <= free:
            if not piece.slope:
                return None
            # A partial block takes a whole entry: slightly fewer tokens may fit than the mean bytes per token suggest.
            fits = int((free - piece.fixed) // piece.slope)
            while piece.at(fits) > free:
                fits -= 1
            return min(fits, following.start - 1) if following else fits
    return 0


def cache_row(model: NamedSpec, context: int, config: InferenceConfig) -> Row:
    """Returns the cache bytes at a context. `kv_bytes` covers all sequences; the other bytes are for one sequence."""
    spec = config.part(model.spec)
    fixed, per_token = spec.kv_growth(config.cache)
    exact = spec.kv_bytes(context, config.batch, config.cache)
    usual = usual_formula_bytes(model.spec, context, config.batch, config.cache) if config.tp == 1 else None
    kinds = (type(layer.mixer) for layer in model.spec.layers)
    formulas = dict.fromkeys(USUAL_FORMULAS[kind][0] for kind in kinds if kind in USUAL_FORMULAS)
    return {
        "table": "kv",
        **about(model),
        **config.describe(),
        "kv_fixed_bytes": fixed,
        "kv_bytes_per_token": per_token,
        "context": context,
        "kv_bytes": exact,
        "usual_formula_kv_bytes": usual,
        "usual_formula_error": None if usual is None else usual / exact - 1,
        "usual_formula": None if usual is None else "; ".join(formulas),
    }


def usual_formula_bytes(spec: Decoder, context: int, batch: int, dtype: torch.dtype) -> int | None:
    """Returns the cache bytes by the usual formula of other calculators; None if it does not cover a layer's mixer.

    The formula takes dim / heads as head_dim. It ignores windows and sharing of K/V between layers, and expands the
    keys and values of MLA.
    """
    mixers = [layer.mixer for layer in spec.layers if layer.mixer]
    if not {*map(type, mixers)} <= USUAL_FORMULAS.keys():
        return None
    per_token = sum(USUAL_FORMULAS[type(mixer)][1](mixer, spec.dim) for mixer in mixers)
    return round(per_token * context * batch * element_bytes(dtype))


def fit_row(model: NamedSpec, memory: int, config: InferenceConfig) -> Row:
    """Returns the longest context whose cache fits into the `memory` bytes of a card beside the weights.

    `limit` names the limiting factor: "weights" if they do not fit, "cache" if it fills the rest of the memory, or
    "context" if the model's whole context fits.
    """
    spec, config = config.part(model.spec), config.of(model)
    weights, trained = config.weights.model_bytes(spec), spec.context
    free = (memory - weights) // config.batch
    fits = longest(pieces(spec, config.cache), free) if weights <= memory else 0
    whole = fits is None or (trained is not None and fits >= trained)
    return {
        "table": "fit",
        **about(model),
        **config.describe(),
        "weights_dtype": config.weights.name,
        "memory_bytes": memory,
        "weight_bytes": weights,
        "context_that_fits": fits,
        "trained_context": trained,
        "limit": "weights" if weights > memory else "context" if whole else "cache",
    }


def crossing_row(model: NamedSpec, against: NamedSpec, config: InferenceConfig) -> Row:
    """Returns a row whose `changes` list each context from which the cache of `model` or of `against` is smaller.

    `from_context` and `smaller` repeat the last change.
    """
    found = changes(*(pieces(config.part(each.spec), config.cache) for each in (model, against)))
    smaller = {-1: model.label, 0: None, 1: against.label}
    listed = [{"from_context": change.start, "smaller": smaller[change.sign]} for change in found]
    return {"table": "crossing", **about(model, against), **listed[-1], "changes": listed}
