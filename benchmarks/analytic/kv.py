"""The KV cache: bytes as affine pieces of the context, the usual formula, what fits, and where two caches cross."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, inf, lcm
from typing import Any

import torch

from benchmarks.analytic.models import NamedSpec, about
from benchmarks.analytic.weight_forms import PLAIN, RELEASED, WeightForm
from zoo.blocks import GQA, MLA, KVSource, SharedKV
from zoo.blocks.expert_parallel import expert_parallel
from zoo.cli.tables import Row
from zoo.model.decoder import Decoder
from zoo.registry import Mixer
from zoo.sharding import Rank, require_same_ranks
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
    """How a model is run: `batch` sequences, the form of the `weights` (a dtype, or a form of weight_forms; RELEASED is
    each model's own), the dtype of the `cache`, and how many cards hold the model together (tensor parallel; expert
    parallel if `ep` is the same number). Figures are of the first card: no other holds more."""

    batch: int = 1
    weights: torch.dtype | WeightForm = torch.bfloat16
    cache: torch.dtype = torch.bfloat16
    tp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        require_same_ranks(self.tp, self.ep)

    @property
    def form(self) -> WeightForm:
        """The form of the weights."""
        return self.weights if isinstance(self.weights, WeightForm) else PLAIN[self.weights]

    def of(self, model: NamedSpec) -> "InferenceConfig":
        """The same for one model: RELEASED becomes its own form."""
        return replace(self, weights=model.released_form) if self.weights is RELEASED else self

    def describe(self) -> Row:
        """The keys of a row: batch, cache dtype and the number of cards."""
        return {"batch": self.batch, "cache_dtype": dtype_name(self.cache), "tp": self.tp, "ep": self.ep}

    def divided(self, spec: Decoder) -> Decoder:
        """The model as cards divide it: the width of each expert, or with `ep` whole experts."""
        return expert_parallel(spec) if self.ep > 1 else spec

    def part(self, spec: Decoder) -> Decoder:
        """What the first card holds. Raises SpecError for a model that so many cannot divide."""
        return spec if self.tp == 1 else self.divided(spec).shard(Rank(0, self.tp))


@dataclass(frozen=True)
class Piece:
    """From `start` tokens of context to the next piece, one sequence takes fixed + per_token * context bytes, and the
    bytes of each of the `entries` (bytes, every) for each block of `every` tokens that has begun."""

    start: int
    fixed: int
    per_token: int
    entries: tuple[tuple[int, int], ...] = ()

    @property
    def block(self) -> int:
        """The tokens after which it grows by the same bytes again."""
        return lcm(*(every for _, every in self.entries))

    @property
    def slope(self) -> Fraction:
        """Bytes per token: exact from one multiple of `block` tokens to another."""
        return self.per_token + sum((Fraction(nbytes, every) for nbytes, every in self.entries), Fraction())

    def at(self, context: int) -> int:
        """Bytes at this context, which must lie in the piece."""
        entries = sum(nbytes * -(-context // every) for nbytes, every in self.entries)
        return self.fixed + self.per_token * context + entries


@dataclass(frozen=True)
class Change:
    """From `start` tokens to the next change, (bytes of the first model) - (bytes of the second) has this `sign`."""

    start: int
    sign: int


def pieces(spec: Decoder, dtype: torch.dtype) -> list[Piece]:
    """The pieces of a model's cache, the first from 0 tokens. A new piece starts where a window is full. States are
    fixed from the first token on."""
    caches = [layer.cache_spec() for layer in spec.layers]
    layers = [(cache.elements() * dtype.itemsize, cache.reach.limit) for cache in caches]
    kept: Counter[int] = Counter()  # bytes, by the tokens of an entry
    for entries in (entries for cache in caches for entries in cache.entries):
        kept[entries.every] += entries.elements * dtype.itemsize
    by_block = tuple((nbytes, every) for every, nbytes in sorted(kept.items()))
    states = sum(cache.state_bytes(dtype.itemsize) for cache in caches)
    found = []
    for start in sorted({0, *(limit for _, limit in layers if limit is not None)}):
        full = [(size, limit) for size, limit in layers if limit is not None and limit <= start]
        per_token = sum(size for size, _ in layers) - sum(size for size, _ in full)
        found.append(Piece(start, states + sum(size * limit for size, limit in full), per_token, by_block))
    return found


def changes(first: Sequence[Piece], second: Sequence[Piece]) -> list[Change]:
    """Where the smaller of two caches becomes another, from 1 token on: the first change starts at 1. Where a cache has
    entries for several tokens, caches are compared at multiples of all blocks, and a change starts where the last of
    these blocks keeps its sign to the end: on the way a cache that grows in steps may cross another's many times."""

    def sign(context: int) -> int:
        difference = _piece(first, context).at(context) - _piece(second, context).at(context)
        return (difference > 0) - (difference < 0)

    found: list[Change] = []
    step = lcm(first[0].block, second[0].block)
    starts = sorted({piece.start for piece in (*first, *second)})
    for start, end in zip(starts, [*starts[1:], inf], strict=True):
        a, b = (_piece(growth, start) for growth in (first, second))
        fixed, slope = a.fixed - b.fixed, a.slope - b.slope
        # The sign of fixed + slope * n changes at the first multiple that is not below the root, and at the next one.
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
    """The piece that holds a context."""
    return [piece for piece in growth if piece.start <= context][-1]


def longest(growth: Sequence[Piece], free: int) -> int | None:
    """The longest context whose cache takes at most `free` bytes: 0 if none fits, None if every context fits."""
    for piece, following in reversed(list(zip(growth, [*growth[1:], None], strict=True))):
        if piece.at(piece.start) <= free:
            if not piece.slope:
                return None
            # Entries of blocks that have begun are whole: a few tokens less may fit than the bytes per token say.
            fits = int((free - piece.fixed) // piece.slope)
            while piece.at(fits) > free:
                fits -= 1
            return min(fits, following.start - 1) if following else fits
    return 0


def cache_row(model: NamedSpec, context: int, config: InferenceConfig) -> Row:
    """Cache bytes at a context. Fixed bytes and bytes per token are of one sequence, `kv_bytes` of all."""
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
    """Cache bytes as other calculators count them: head_dim is dim / heads, every layer keeps every token of its
    own, MLA keeps expanded keys and values. None where a layer has another kind of mixer."""
    mixers = [layer.mixer for layer in spec.layers if layer.mixer]
    if not {*map(type, mixers)} <= USUAL_FORMULAS.keys():
        return None
    per_token = sum(USUAL_FORMULAS[type(mixer)][1](mixer, spec.dim) for mixer in mixers)
    return round(per_token * context * batch * dtype.itemsize)


def fit_row(model: NamedSpec, memory: int, config: InferenceConfig) -> Row:
    """The longest context whose cache fits into the `memory` bytes of a card beside the weights.

    `limit` is what ends it: the weights, which do not fit; the cache, which fills what they leave; or the model's own
    context, which fits.
    """
    spec, config = config.part(model.spec), config.of(model)
    weights, trained = config.form.model_bytes(spec), spec.context
    free = (memory - weights) // config.batch
    fits = longest(pieces(spec, config.cache), free) if weights <= memory else 0
    whole = fits is None or (trained is not None and fits >= trained)
    return {
        "table": "fit",
        **about(model),
        **config.describe(),
        "weights_dtype": config.form.name,
        "memory_bytes": memory,
        "weight_bytes": weights,
        "context_that_fits": fits,
        "trained_context": trained,
        "limit": "weights" if weights > memory else "context" if whole else "cache",
    }


def crossing_row(model: NamedSpec, against: NamedSpec, config: InferenceConfig) -> Row:
    """`changes` lists which cache is the smaller from which context on, the model's or that of `against`;
    `from_context` and `smaller` repeat the last change."""
    found = changes(*(pieces(config.part(each.spec), config.cache) for each in (model, against)))
    smaller = {-1: model.label, 0: None, 1: against.label}
    listed = [{"from_context": change.start, "smaller": smaller[change.sign]} for change in found]
    return {"table": "crossing", **about(model, against), **listed[-1], "changes": listed}
