"""Scaled models: published models that are scaled down to the same budget, so that their training can be compared.

All models have the same number of layers and about the same width. The feed-forward width is set to meet the budget.
The characteristic sizes keep their proportions: the layer pattern, heads, latents, windows, RoPE's base
(zoo.swaps.proportions).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle, islice
from math import log2
from typing import Any, Literal, TypeVar

from zoo.errors import SpecError, UsageError
from zoo.model.decoder import Decoder
from zoo.registry import Mixer, Spec
from zoo.swaps.budget import TOLERANCE, solve_widths, with_widths
from zoo.swaps.proportions import Proportions, score_scale
from zoo.units import format_count

T = TypeVar("T")
Match = Literal["params", "active", "flops", "kv"]
UNITS: dict[str, str] = {"params": "parameters", "active": "active parameters", "flops": "FLOPs per token"}
UNITS |= {"kv": "bytes of KV cache"}
DEPTH = 6  # layers, such as five with a window and one with full attention; larger models have a multiple of 6
MAX_WIDTH_PER_LAYER = 64  # dim / layers, as in GPT-2 small
MIN_DIM = 8


@dataclass(frozen=True)
class Budget:
    """A budget: its `unit` in words, the `wanted` value, and the value that the spec has (`met`)."""

    unit: str
    wanted: int
    met: int

    @property
    def gap(self) -> float:
        """The relative difference of `met` from `wanted`."""
        return self.met / self.wanted - 1

    def describe(self) -> str:
        """Returns the value, the wanted value and the gap in one line."""
        return f"{self.met:,} {self.unit}, {self.gap:+.2%} of {self.wanted:,}"


@dataclass(frozen=True)
class Scaled:
    """A spec and its budgets: a single one, or for "kv" the cache and the parameters."""

    spec: Decoder
    match: Match
    budgets: tuple[Budget, ...]

    @property
    def meets(self) -> bool:
        """Whether the feed-forward width met its budget within 1 %."""
        return abs(self.budgets[-1].met - self.budgets[-1].wanted) <= TOLERANCE * self.budgets[-1].wanted

    def describe(self) -> str:
        """Returns all budgets in one line."""
        return "; ".join(budget.describe() for budget in self.budgets)


def scaled(
    spec: Decoder,
    params: int = 200_000,
    *,
    match: Match = "params",
    vocab: int = 256,
    context: int = 256,
    layers: int | None = None,
) -> Scaled:
    """Returns a published `spec` scaled down, for a vocabulary of `vocab` tokens and sequences of `context` tokens.

    `layers` is by default the smallest multiple of 6 with dim <= 64 * layers. The width dim is that of a plain decoder
    with `params` parameters: params = 12 * layers * dim**2 + 2 * vocab * dim (Kaplan et al. 2020, section 2.1). Another
    width is used if the heads do not divide this one, if the feed-forward would get less than half of the layers'
    budget, or if no feed-forward width meets the budget within 1 %.

    The feed-forward width is then set to meet the budget that `match` names: `params` parameters ("params"), `params`
    active parameters ("active"), or the plain decoder's forward FLOPs per token ("flops"). "kv" is "params" with an
    equal cache too: the width of KV heads, or the rank of the latent, brings the bfloat16 cache of a sequence as near
    as possible to that of the plain decoder with keys a quarter as wide as its queries.

    Raises SpecError if the budget is too small for the layers and the vocabulary, UsageError for a budget below 1.
    """
    target = _Target(params, match, vocab, context, layers)
    depth, width = target.depth_and_width
    plan = replace(spec, vocab=vocab, layers=at_depth(spec.layers, depth))
    met: list[Scaled] = []
    starved: list[Decoder] = []
    for sized in _sized(spec, plan, width, context):
        ready = target.with_cache(sized)
        if not target.leaves_half(ready):
            starved.append(ready)
        elif (found := target.solve(ready)).meets:
            return found
        else:
            met.append(found)
    met = met or [target.solve(each) for each in starved if target.affords(each)]
    if not met:
        raise target.too_small(min(starved, key=target.least))
    nearest = min(met, key=lambda each: abs(each.budgets[-1].gap))
    return nearest if nearest.meets else target.solve(nearest.spec, mixed=True)


def resolved(spec: Decoder, params: int = 200_000, *, match: Match = "params") -> Scaled:
    """Solves for the feed-forward width of a scaled spec again, after a swap. For "kv", it first solves for the width
    of the KV heads. If no single width comes within 1 %, the first layers are a step wider. Raises the errors of
    `scaled`."""
    target = _Target(params, match, spec.vocab, spec.context or 1, len(spec.layers))
    ready = target.with_cache(spec)
    if not target.affords(ready):
        raise target.too_small(ready)
    return target.solve(ready, mixed=True)


@dataclass(frozen=True)
class _Target:
    """The quantities of a plain decoder with `params` parameters, which a scaled model must match."""

    params: int
    match: Match
    vocab: int
    context: int
    layers: int | None

    def __post_init__(self) -> None:
        if self.match not in UNITS:
            raise UsageError(f"match={self.match!r} must be one of {', '.join(UNITS)}")
        for name in ("params", "vocab", "context", "layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} is below 1")

    @cached_property
    def depth_and_width(self) -> tuple[int, int]:
        """The number of layers and dim of the plain decoder."""
        depth, outside = self.layers or DEPTH, 2 * self.vocab
        while True:
            width = ((outside**2 + 4 * 12 * depth * self.params) ** 0.5 - outside) / (2 * 12 * depth)
            if self.layers or width <= MAX_WIDTH_PER_LAYER * depth:
                step = 16 if width >= 24 else 4
                return depth, max(MIN_DIM, step * round(width / step))
            depth += DEPTH

    @property
    def cache(self) -> int:
        """The bytes of the plain decoder's cache."""
        depth, width = self.depth_and_width
        return 2 * 2 * max(1, width // 4) * depth * self.context

    @property
    def unit(self) -> str:
        """The unit of the quantity that the feed-forward width must match."""
        return UNITS["params" if self.match == "kv" else self.match]

    @property
    def wanted(self) -> int:
        """The value of this quantity in the plain decoder."""
        depth, width = self.depth_and_width
        plain_flops = 2 * (self.params - self.vocab * width) + 2 * depth * self.context * width
        return max(1, plain_flops) if self.match == "flops" else self.params

    def cost(self, spec: Decoder) -> int:
        """Returns the value of this quantity in a spec."""
        if self.match == "flops":
            return round(spec.flops(0, self.context) / self.context)
        return spec.active_params() if self.match == "active" else spec.params()

    def least(self, spec: Decoder) -> int:
        """Returns the cost of a spec with feed-forwards as narrow as possible."""
        return self.cost(with_widths(spec, 0))

    def affords(self, spec: Decoder) -> bool:
        """Whether a spec can meet the budget, with narrow enough feed-forwards."""
        return self.least(spec) <= self.wanted * (1 + TOLERANCE)

    def leaves_half(self, spec: Decoder) -> bool:
        """Whether the feed-forwards get at least half of the layers' budget, if the spec meets it."""
        narrow = with_widths(spec, 0)
        whole = self.cost(narrow)
        layers = self.cost(replace(narrow, layers=2 * narrow.layers)) - whole
        return layers <= (self.wanted - (whole - layers)) / 2

    def with_cache(self, spec: Decoder) -> Decoder:
        """Returns `spec` unchanged, or for "kv" with KV heads or latents that meet the cache's budget."""
        return _with_cache(spec, self.cache, self.context) if self.match == "kv" else spec

    def solve(self, spec: Decoder, mixed: bool = False) -> Scaled:
        """Returns `spec` with the feed-forward widths that meet the budget."""
        spec = solve_widths(spec, self.wanted, self.cost, mixed)
        met = Budget(self.unit, self.wanted, self.cost(spec))
        if self.match != "kv":
            return Scaled(spec, self.match, (met,))
        cache = Budget(f"{UNITS['kv']} for {self.context:,} tokens", self.cache, spec.kv_bytes(self.context))
        return Scaled(spec, self.match, (cache, met))

    def too_small(self, spec: Decoder) -> SpecError:
        """Returns an error that names the smallest possible budget."""
        least = self.least(spec)
        return SpecError(
            f"{self.wanted:,} {self.unit} are too few for {len(spec.layers)} layers, a vocabulary of {spec.vocab:,} "
            f"and this attention: the least is {least:,} ({format_count(least)})"
        )


def _sized(full: Decoder, plan: Decoder, width: int, context: int) -> Iterator[Decoder]:
    """Yields `plan` at several even widths, best first: widths within an eighth of `width`, then narrower ones. In each
    group, specs come first whose heads keep their properties (`_lost`), and among these the nearest width."""
    step = 2 ** max(1, int(log2(width / 32)))
    few = width // 8 // step
    near = sorted((width + i * step for i in range(-few, few + 1)), key=lambda dim: abs(dim - width))
    narrower = range(min(near) - step, MIN_DIM - 1, -step)
    for dims in (near, narrower):
        forms = [Proportions(full, dim, context, plan.vocab).apply(plan) for dim in dims]
        yield from sorted(forms, key=lambda form: _lost(full, form))


def _lost(full: Decoder, small: Decoder) -> int:
    """Returns a score of the properties that scaling changed: 1 if several KV heads became one, plus 2 if the total
    width of the heads no longer equals the model's."""

    def kept(spec: Decoder) -> tuple[bool, bool]:
        heads: list[Any] = [part for part in spec.walk() if hasattr(part, "kv_heads")]
        return all(part.kv_heads == 1 for part in heads), all(part.heads * part.head_dim == spec.dim for part in heads)

    (was_one, was_square), (is_one, is_square) = kept(full), kept(small)
    return (is_one and not was_one) + 2 * (was_square and not is_square)


def _with_cache(spec: Decoder, wanted: int, context: int) -> Decoder:
    """Returns `spec` with the width of KV heads or latents whose cache is nearest to `wanted` bytes."""

    def at(factor: float) -> Decoder:
        layers = {layer: _kv_width(layer, factor) for layer in dict.fromkeys(spec.layers)}
        return replace(spec, layers=tuple(layers[layer] for layer in spec.layers))

    widest = max(map(_cache_width, spec.walk()))
    if not widest:
        raise SpecError("no KV heads and no latents here whose width could meet a cache")
    one, two = (at(factor).kv_bytes(context) for factor in (1, 2))
    exact = 1 + (wanted - one) / (two - one)  # bytes are linear in the factor, up to rounding
    near = [at(max(exact + step / widest, 0)) for step in range(-3, 4)]
    return min(near, key=lambda each: abs(each.kv_bytes(context) - wanted))


def _cache_width(part: Spec) -> int:
    """Returns the width to which a part's cache is proportional; 0 if the part caches no tokens."""
    return getattr(part, part.cache_width) if isinstance(part, Mixer) and part.cache_width else 0


def _kv_width(part: Any, factor: float) -> Any:
    """Returns a part with the rank of its latent, or the width of its heads, multiplied by `factor`."""
    if not _cache_width(part):
        return part.map(lambda child: _kv_width(child, factor))
    wide = _cache_width(part) * factor
    if part.cache_width != "head_dim":
        return replace(part, **{part.cache_width: max(1, round(wide))})
    new: dict[str, Any] = {"head_dim": max(getattr(part, "rope_dim", 2), 2 * round(wide / 2))}
    scale = getattr(part, "scale", None)
    return replace(part, **new, **({"scale": score_scale(vars(part), new)} if scale else {}))


def at_depth(layers: Sequence[T], depth: int) -> tuple[T, ...]:
    """Returns `depth` layers in the pattern of `layers`: a proportional number of leading layers (at least one, if
    there are any), then repetitions of the period. Every distinct layer is included if `depth` allows it.

    From 61 layers, the first 3 dense, at_depth(..., 6) makes 6 layers, the first one dense. From 26 layers, every sixth
    full, it makes 6 layers, the last one full.
    """
    lead, period = leading_and_period(layers)
    leading, repeated = layers[:lead], layers[lead : lead + period]
    few = max(len(set(leading)), round(lead * depth / len(layers))) if lead else 0
    kept = min(few, lead, max(depth - len(set(repeated)), int(depth > 1)))
    body = depth - kept
    is_whole = lead > 0 and (len(layers) - lead) % period == 0  # if the last layer ends a period, so does the new one
    start = -body % period if is_whole else 0
    rest = _each_kind(repeated, body) if body < period else list(islice(cycle(repeated), start, start + body))
    return (*_each_kind(leading, kept), *rest)


def leading_and_period(layers: Sequence[T]) -> tuple[int, int]:
    """Returns (leading layers, length of the period). Their sum is the smallest with which the list repeats its period
    after the leading layers. If several sums are equal, the shortest period is returned."""
    found = []
    for period in range(1, len(layers) + 1):
        repeats = [layers[i] == layers[i + period] for i in range(len(layers) - period)]
        lead = max((i + 1 for i, same in enumerate(repeats) if not same), default=0)
        if lead + period <= len(layers):
            found.append((lead + period, period))
    length, period = min(found)
    return length - period, period


def _each_kind(layers: Sequence[T], number: int) -> list[T]:
    """Returns `number` of `layers` in their order. The first layer of each kind takes precedence over repeats."""
    firsts = [i for i, layer in enumerate(layers) if layer not in layers[:i]]
    others = [i for i in range(len(layers)) if i not in firsts]
    return [layers[i] for i in sorted([*firsts, *others][:number])]
