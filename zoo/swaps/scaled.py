"""Scaled models: small forms of published models with equal budgets, to train them beside each other.

Every model has the same depth, about the same width and, through its feed-forward, the same budget. Its characteristic
sizes keep their proportions: the layer pattern, heads, latents, windows, RoPE's base (zoo.swaps.proportions).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import log2
from typing import Any, Literal

from zoo.errors import SpecError, UsageError
from zoo.model.decoder import Decoder
from zoo.swaps.budget import TOLERANCE, mix_widths, narrowest, solve_widths
from zoo.swaps.layer_plan import at_depth
from zoo.swaps.proportions import Proportions, score_scale
from zoo.units import format_count

Match = Literal["params", "active", "flops", "kv"]
UNITS: dict[str, str] = {"params": "parameters", "active": "active parameters", "flops": "FLOPs per token"}
UNITS |= {"kv": "bytes of KV cache"}
DEPTH = 6  # five local layers and a full one; larger models have a multiple of it
MAX_WIDTH_PER_LAYER = 64  # dim / layers, as in GPT-2 small
MIN_DIM = 8


@dataclass(frozen=True)
class Budget:
    """A target figure: its `unit` in words, the `wanted` value, and the value that the spec has (`met`)."""

    unit: str
    wanted: int
    met: int

    @property
    def gap(self) -> float:
        """The relative difference of `met` from `wanted`."""
        return self.met / self.wanted - 1

    def describe(self) -> str:
        """Returns one line: both figures and the gap."""
        return f"{self.met:,} {self.unit}, {self.gap:+.2%} of {self.wanted:,}"


@dataclass(frozen=True)
class Scaled:
    """A spec and its budgets: one or, for "kv", the cache and the parameters."""

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
    reference: Decoder | int | None = None,
) -> Scaled:
    """Returns the small form of a published `spec`, for a vocabulary of `vocab` tokens and sequences of `context`
    tokens.

    The width is that of a plain decoder with `params` parameters and `layers` layers: 12 * layers * dim**2 +
    2 * vocab * dim (Kaplan et al. 2020, section 2.1). None: 6 layers, or the multiple of 6 with dim <= 64 * layers.
    Another width is chosen if the heads do not divide this one or attention would get more than the feed-forward. It is
    also chosen if no feed-forward width comes within 1 %. The feed-forward width is then solved for `params`
    parameters, `params` active parameters, or FLOPs.

    `reference`, for "flops" and "kv": a model whose figure is met, or the figure itself. The figure is forward FLOPs
    per token of a sequence of `context` tokens, or cache bytes of `context` tokens in bfloat16. None: the figure of the
    plain decoder, whose cache has a quarter of its queries' width. For "kv", the width of KV heads or the latent's rank
    gives the nearest cache, and the feed-forward then meets `params`.

    Raises SpecError if the budget is too small for the depth and vocabulary, UsageError for a budget below 1.
    """
    _check(params, match, vocab=vocab, context=context, layers=1 if layers is None else layers)
    depth, width = _depth_and_width(params, vocab, layers)
    plan = replace(spec, vocab=vocab, layers=at_depth(spec.layers, depth))
    target = _Target(params, match, context, _reference(reference, match, params, vocab, context, depth, width))
    met: list[Scaled] = []
    starved: list[Decoder] = []
    for sized in _sized(spec, plan, width, context):
        ready = target.with_cache(sized)
        if not target.leaves_half(ready):
            starved.append(ready)
        elif (found := target.solve(ready, solve_widths)).meets:
            return found
        else:
            met.append(found)
    met = met or [target.solve(each, solve_widths) for each in starved if target.affords(each)]
    if not met:
        raise target.too_small(min(starved, key=target.least))
    nearest = min(met, key=lambda each: abs(each.budgets[-1].gap))
    return nearest if nearest.meets else target.solve(nearest.spec, mix_widths)


def resolved(
    spec: Decoder,
    params: int = 200_000,
    *,
    match: Match = "params",
    reference: Decoder | int | None = None,
) -> Scaled:
    """Solves the feed-forward width of a scaled spec again after a swap; for "kv", after the width of its KV heads.

    If one width misses by more than 1 %, the first layers are a step wider. Raises the errors of `scaled`.
    """
    context = spec.context or 1
    _check(params, match)
    depth, width = _depth_and_width(params, spec.vocab, len(spec.layers))
    target = _Target(params, match, context, _reference(reference, match, params, spec.vocab, context, depth, width))
    ready = target.with_cache(spec)
    if not target.affords(ready):
        raise target.too_small(ready)
    return target.solve(ready, mix_widths)


@dataclass(frozen=True)
class _Target:
    """A target: the figure to meet, and its value."""

    params: int
    match: Match
    context: int
    reference: int

    @property
    def solved_for(self) -> tuple[str, int]:
        """The quantity that the feed-forward width is solved for, and its wanted value."""
        return ("flops", self.reference) if self.match == "flops" else (self.match.replace("kv", "params"), self.params)

    def cost(self, spec: Decoder) -> int:
        """Returns the spec's value of the quantity that the feed-forward width is solved for."""
        return _COSTS[self.solved_for[0]](spec, self.context)

    def least(self, spec: Decoder) -> int:
        """Returns the least cost, with the smallest feed-forward widths."""
        return self.cost(narrowest(spec))

    def affords(self, spec: Decoder) -> bool:
        """Whether the least cost is within the budget."""
        return self.least(spec) <= self.solved_for[1] * (1 + TOLERANCE)

    def leaves_half(self, spec: Decoder) -> bool:
        """Whether the feed-forward gets at least half of the layers' budget. Otherwise attention starves it."""
        narrow = narrowest(spec)
        whole = self.cost(narrow)
        layers = self.cost(replace(narrow, layers=2 * narrow.layers)) - whole
        return layers <= (self.solved_for[1] - (whole - layers)) / 2

    def with_cache(self, spec: Decoder) -> Decoder:
        """Returns `spec`, for "kv" with the width of KV heads or latents that meets the cache's budget."""
        return _with_cache(spec, self.reference, self.context) if self.match == "kv" else spec

    def solve(self, spec: Decoder, widths: Callable[[Decoder, int, Callable[[Decoder], int]], Decoder]) -> Scaled:
        """Returns `spec` with the feed-forward widths that `widths` finds."""
        match, wanted = self.solved_for
        spec = widths(spec, wanted, self.cost)
        met = Budget(UNITS[match], wanted, self.cost(spec))
        if self.match != "kv":
            return Scaled(spec, self.match, (met,))
        cache = Budget(f"{UNITS['kv']} for {self.context:,} tokens", self.reference, spec.kv_bytes(self.context))
        return Scaled(spec, self.match, (cache, met))

    def too_small(self, spec: Decoder) -> SpecError:
        """Returns the error that names the least budget."""
        match, wanted = self.solved_for
        least = self.least(spec)
        return SpecError(
            f"{wanted:,} {UNITS[match]} are too few for {len(spec.layers)} layers, a vocabulary of {spec.vocab:,} and "
            f"this attention: the least is {least:,} ({format_count(least)})"
        )


_COSTS: dict[str, Callable[[Decoder, int], int]] = {
    "params": lambda spec, context: spec.params(),
    "active": lambda spec, context: spec.active_params(),
    "flops": lambda spec, context: round(spec.flops(0, context) / context),
    "kv": lambda spec, context: spec.kv_bytes(context),
}


def _reference(
    given: Decoder | int | None, match: Match, params: int, vocab: int, context: int, depth: int, width: int
) -> int:
    """Returns the figure to meet: the given one, or that of the plain decoder."""
    if isinstance(given, Decoder):
        return _COSTS[match](given, context)
    if given is not None:
        _check(params, match, reference=given)
        return given
    if match == "flops":
        return max(1, 2 * (params - vocab * width) + 2 * depth * context * width)
    return 2 * 2 * max(1, width // 4) * depth * context


def _depth_and_width(params: int, vocab: int, layers: int | None) -> tuple[int, int]:
    """Returns the number of layers and dim of a plain decoder with `params` parameters."""
    depth, outside = layers or DEPTH, 2 * vocab
    while True:
        width = ((outside**2 + 4 * 12 * depth * params) ** 0.5 - outside) / (2 * 12 * depth)
        if layers or width <= MAX_WIDTH_PER_LAYER * depth:
            step = 16 if width >= 24 else 4
            return depth, max(MIN_DIM, step * round(width / step))
        depth += DEPTH


def _sized(full: Decoder, plan: Decoder, width: int, context: int) -> Iterator[Decoder]:
    """Yields `plan` at even dims, the best first: dims within an eighth of `width`, then narrower dims. In each group,
    forms that keep the kind of heads come first, and among these the nearest dim."""
    step = 2 ** max(1, int(log2(width / 32)))
    few = width // 8 // step
    near = sorted((width + i * step for i in range(-few, few + 1)), key=lambda dim: abs(dim - width))
    narrower = range(min(near) - step, MIN_DIM - 1, -step)
    for dims in (near, narrower):
        forms = [Proportions(full, dim, context, plan.vocab).apply(plan) for dim in dims]
        yield from sorted(forms, key=lambda form: _lost(full, form))


def _lost(full: Decoder, small: Decoder) -> int:
    """Scores the properties of the heads that the small form lost: 1 if grouped queries became multi-query, plus 2 if
    their total width no longer equals the model's."""

    def kept(spec: Decoder) -> tuple[bool, bool]:
        heads: list[Any] = [part for part in spec.walk() if hasattr(part, "kv_heads")]
        return all(part.kv_heads == 1 for part in heads), all(part.heads * part.head_dim == spec.dim for part in heads)

    (was_one, was_square), (is_one, is_square) = kept(full), kept(small)
    return (is_one and not was_one) + 2 * (was_square and not is_square)


def _with_cache(spec: Decoder, wanted: int, context: int) -> Decoder:
    """Returns `spec` with the width of KV heads or latents that makes its cache nearest to `wanted` bytes."""

    def at(factor: float) -> Decoder:
        layers = {layer: _kv_width(layer, factor) for layer in dict.fromkeys(spec.layers)}
        return replace(spec, layers=tuple(layers[layer] for layer in spec.layers))

    widest = max(getattr(part, "kv_rank", 0) or getattr(part, "head_dim", 0) for part in spec.walk())
    if not widest:
        raise SpecError("no KV heads and no latents here whose width could meet a cache")
    one, two = (at(factor).kv_bytes(context) for factor in (1, 2))
    exact = 1 + (wanted - one) / (two - one)  # bytes are linear in the factor, up to rounding
    near = [at(max(exact + step / widest, 0)) for step in range(-3, 4)]
    return min(near, key=lambda each: abs(each.kv_bytes(context) - wanted))


def _kv_width(part: Any, factor: float) -> Any:
    """Returns a part with its latent's rank, or the width of its heads, multiplied by `factor`."""
    if hasattr(part, "kv_rank"):
        return replace(part, kv_rank=max(1, round(part.kv_rank * factor)))
    if hasattr(part, "kv_heads") or hasattr(part, "o_rank"):
        least = getattr(part, "rope_dim", 2)
        new: dict[str, Any] = {"head_dim": max(least, 2 * round(part.head_dim * factor / 2))}
        scale = getattr(part, "scale", None)
        return replace(part, **new, **({"scale": score_scale(vars(part), new)} if scale else {}))
    return part.map(lambda child: _kv_width(child, factor))


def _check(params: int, match: str, **sizes: int) -> None:
    if match not in UNITS:
        raise UsageError(f"match={match!r} must be one of {', '.join(UNITS)}")
    for name, value in {"params": params, **sizes}.items():
        if value < 1:
            raise UsageError(f"{name}={value} is below 1")
