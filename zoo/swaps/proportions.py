"""Proportions of a published model at another width: heads, latents, windows, RoPE, experts.

The rules go by field names, since one quantity has one name in every block: a new block scales by them too.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import ceil, log2
from typing import Any

from zoo.blocks.positions import LearnedPositions
from zoo.blocks.rope_scaling import YarnScaling
from zoo.model.decoder import Decoder
from zoo.registry import Spec
from zoo.swaps.tiny import MIN_STEP

EXPERTS, MIN_K = 16, 2  # with one expert per token, renormalised weights are 1 and the router gets no gradient
WINDOWS_IN_CONTEXT = 8  # the minimum window is context / 8
ENTRIES_IN_CONTEXT = 16  # minimum number of blocks per context that are compressed to an entry
MAX_WIDTH = 1.5  # heads * head_dim / dim: wider attention leaves a small model too little feed-forward
MIN_HEAD_DIM, MAX_HEAD_DIM = 8, 256
MIN_INDEX_HEADS = 16  # after relu, one in 2^heads tokens has only zero scores, so that its choice is arbitrary
USUAL_HEAD_DIM = 12  # narrower heads learn recall late or not at all, and take attention kernels as long as wide ones
MIN_THETA = 10.0
Fields = dict[str, Any]


@dataclass(frozen=True)
class Proportions:
    """Scales layers of the published model `full` down to width `dim`, a trained context of `context` tokens and a
    vocabulary of `vocab` tokens."""

    full: Decoder
    dim: int
    context: int
    vocab: int

    def apply(self, spec: Decoder) -> Decoder:
        """Returns `spec`, made of layers of `full`, at this width and context."""
        small = {layer: self._scale(layer) for layer in dict.fromkeys(spec.layers)}
        layers = tuple(small[layer] for layer in spec.layers)
        embed_scale = self.dim**0.5 if self.full.embed_scale == self.full.dim**0.5 else self.full.embed_scale
        positions = spec.positions and LearnedPositions(self.context)
        per_layer = spec.per_layer and self._scale(spec.per_layer)
        placed = replace(spec, context=self.context, positions=positions)
        return replace(placed, dim=self.dim, layers=layers, embed_scale=embed_scale, per_layer=per_layer)

    def _scale(self, part: Any) -> Any:
        """Returns a part at this width, with every part in it."""
        held: Fields = {field.name: getattr(part, field.name) for field in fields(part)}
        new: Fields = {}
        if "theta" in held:
            new["theta"] = self._theta(part)
        if isinstance(held.get("scaling"), Spec):
            new["scaling"] = None
        for name in ("window", "chunk", "step"):
            if held.get(name):
                new[name] = self._window(held[name])
        for name in ("latent", "width"):
            if held.get(name):
                new[name] = max(1, round(held[name] * self.dim / self.full.dim))
        if {"heads", "kv_heads", "head_dim"} <= held.keys():
            new |= self._grouped_heads(held)
        if {"heads", "head_dim", "groups", "state"} <= held.keys():
            new |= state_space_heads(held, self.full.dim, self.dim)
        if held.get("channels"):
            new["channels"] = max(1, round(held["channels"] * self.dim / self.full.dim))
        if {"heads", "nope_dim", "rope_dim", "v_dim"} <= held.keys():
            new |= latent_heads(held, self.full.dim, self.dim)
            if "indexer" in held:
                new["indexer"] = self._indexer(held["indexer"], held, new)
        if {"heads", "head_dim", "rope_dim", "o_rank"} <= held.keys():
            new |= heads_of_one_key(held, self.full.dim, self.dim)
            if held["compressor"]:
                new["compressor"] = self._compressor(held["compressor"], held, new)
        if {"key_heads", "value_heads", "key_dim", "value_dim"} <= held.keys():
            new |= key_and_value_heads(held, self.full.dim, self.dim)
        elif {"heads", "head_dim"} <= held.keys() and not {"kv_heads", "groups"} & held.keys():
            new |= plain_heads(held, self.full.dim, self.dim)
        if held.get("scale") and "heads" in held:
            new["scale"] = score_scale(held, new)
        if "experts" in held:
            new["experts"] = min(EXPERTS, held["experts"])
            new["router"] = _router(held["router"], held["experts"], new["experts"], self.vocab)
            small = {name: self._scale(held[name]) for name in ("expert", "shared") if held.get(name)}
            new |= _experts(held, small, new)
        return part.map(self._scale, **new)

    def _grouped_heads(self, held: Fields) -> Fields:
        """Returns `grouped_heads`. Attention with the same number of heads as the model's first, but other KV heads or
        widths, keeps its ratios to the first: one config field holds the number of heads of all layers."""
        every = (vars(part) for layer in self.full.layers for part in layer.walk() if hasattr(part, "kv_heads"))
        first: Fields = next(every, held)
        names = ("kv_heads", "head_dim")
        if first["heads"] != held["heads"] or all(first[name] == held[name] for name in names):
            return grouped_heads(held, self.full.dim, self.dim)
        new = grouped_heads(first, self.full.dim, self.dim)
        same = held["kv_heads"] == first["kv_heads"]
        most = new["kv_heads"] if same else max(1, round(held["kv_heads"] * new["heads"] / held["heads"]))
        kv_heads = next(number for number in range(most, 0, -1) if new["heads"] % number == 0)
        head_dim = 2 * max(1, round(new["head_dim"] * held["head_dim"] / first["head_dim"] / 2))
        return new | {"kv_heads": kv_heads, "head_dim": head_dim}

    def _indexer(self, indexer: Any, held: Fields, new: Fields) -> Any:
        """Returns an indexer for attention's `new` heads, with the ratios to them that it has in `held`. Its k becomes
        the number of tokens of a window."""
        width = max(1, round(indexer.head_dim * new["rope_dim"] / held["rope_dim"]))
        heads = max(MIN_INDEX_HEADS, round(indexer.heads * new["heads"] / held["heads"]))
        return replace(indexer, heads=heads, head_dim=width, k=self._window(indexer.k))

    def _compressor(self, compressor: Any, held: Fields, new: Fields) -> Any:
        """Returns a compressor for attention's `new` heads. A context holds several of its blocks."""
        every = max(2, min(compressor.every, self.context // ENTRIES_IN_CONTEXT))
        indexer = compressor.indexer
        if indexer is not None:
            width = max(round(indexer.head_dim * new["head_dim"] / held["head_dim"]), new["rope_dim"])
            heads = max(MIN_INDEX_HEADS, round(indexer.heads * new["heads"] / held["heads"]))
            k = max(1, self._window(indexer.k * compressor.every) // every)
            indexer = replace(indexer, heads=heads, head_dim=width, k=k)
        return replace(compressor, every=every, indexer=indexer)

    def _window(self, window: int) -> int:
        """Returns the window in tokens: the same share of the context as in the full model, at least an eighth."""
        share = window / (self.full.context or window * WINDOWS_IN_CONTEXT)
        return min(self.context, max(round(share * self.context), ceil(self.context / WINDOWS_IN_CONTEXT)))

    def _theta(self, rope: Any) -> float:
        """Returns the base in three digits, in proportion to the tokens that the layers of this RoPE attend to.

        The longest wavelength keeps its ratio to them. Before its context was extended, a model attended to fewer.
        """
        windows = self._windows.get(rope, {None})
        if None in windows:
            trained: float | None = self.full.context
            if trained and rope.scaling:
                trained = getattr(rope.scaling, "original", None) or trained / getattr(rope.scaling, "factor", 1)
            ratio = self.context / (trained or self.context)
        else:
            ratio = self._window(max(windows)) / max(windows)
        return max(float(f"{rope.theta * ratio:.3g}"), MIN_THETA)

    @cached_property
    def _windows(self) -> dict[Spec, set[Any]]:
        """RoPE -> the windows of the layers that use it. None stands for a layer without a window, or one that sees
        beyond it."""
        found: dict[Spec, set[Any]] = {}
        for layer in dict.fromkeys(self.full.layers):
            for part in layer.walk():
                cache = layer.cache_spec()
                found.setdefault(part, set()).add(None if cache.entries else cache.reach.limit)
        return found


def grouped_heads(held: Fields, full_dim: int, dim: int) -> Fields:
    """Returns heads, kv_heads and head_dim at width `dim`, in the ratios that they have at `full_dim`.

    One KV head stays one. Several stay several if head_dim is then at least USUAL_HEAD_DIM. The number of heads is the
    one whose head_dim is nearest to `head_width(dim)`. heads * head_dim == dim stays true where `dim` is divisible.
    """
    heads, kv_heads, head_dim = held["heads"], held["kv_heads"], held["head_dim"]
    square = heads * head_dim == full_dim
    width = dim * min(heads * head_dim / full_dim, MAX_WIDTH)
    queries = heads // kv_heads  # per KV head
    while queries > 1 and queries * MIN_HEAD_DIM > width:
        queries = ceil(queries / 2)
    while kv_heads == 1 and width > queries * MAX_HEAD_DIM:
        queries *= 2
    options = []
    for number in range(1, max(1, int(width / queries / MIN_HEAD_DIM)) + 1):
        rounded = 2 * max(1, round(width / (number * queries) / 2))
        fits = not square or rounded * number * queries == dim
        other_kind = (number == 1) != (kv_heads == 1)
        narrow = rounded < USUAL_HEAD_DIM
        options.append((not fits, narrow, other_kind, abs(log2(rounded / head_width(dim))), number, rounded))
    *_, few, rounded = min(options)
    if not square and few * queries * rounded == dim:
        rounded += 2 if heads * head_dim > full_dim else -2
    return {"heads": few * queries, "kv_heads": few, "head_dim": rounded}


def head_width(dim: int) -> int:
    """Returns a usual head_dim for a model of this width: the power of two nearest to 2 * sqrt(dim), from 8 to 128."""
    return int(2 ** min(max(round(log2(2 * dim**0.5)), 3), 7))


def latent_heads(held: Fields, full_dim: int, dim: int) -> Fields:
    """Returns heads, their widths and the latents' ranks at width `dim`. Every width is relative to nope_dim. A rank is
    at most `dim`, since a wider latent compresses nothing."""
    unit = head_width(dim)
    width = dim * min(held["heads"] * held["v_dim"] / full_dim, MAX_WIDTH)
    new = {name: max(1, round(held[name] * unit / held["nope_dim"])) for name in ("v_dim", "nope_dim")}
    for name in ("q_rank", "kv_rank"):
        if held.get(name):
            new[name] = min(dim, max(1, round(held[name] * unit / held["nope_dim"])))
    rotary = 2 * max(1, round(held["rope_dim"] * unit / held["nope_dim"] / 2))
    return new | {"rope_dim": rotary, "heads": max(1, round(width / new["v_dim"]))}


def heads_of_one_key(held: Fields, full_dim: int, dim: int) -> Fields:
    """Returns the sizes and ranks of heads that share one key and value, at width `dim`. The ratios of the widths stay,
    and several heads still share a group."""
    unit = head_width(dim)
    heads = max(1, round(dim * min(held["heads"] * held["head_dim"] / full_dim, MAX_WIDTH) / unit))
    most = max(1, heads // 2) if held["groups"] < held["heads"] else heads
    groups = next(number for number in range(min(held["groups"], most), 0, -1) if heads % number == 0)
    share = held["o_rank"] * held["groups"] / (held["heads"] * held["head_dim"])
    return {
        "heads": heads,
        "head_dim": unit,
        "rope_dim": 2 * max(1, round(held["rope_dim"] * unit / held["head_dim"] / 2)),
        "q_rank": min(dim, max(1, round(held["q_rank"] * unit / held["head_dim"]))),
        "groups": groups,
        "o_rank": max(1, round(share * heads * unit / groups)),
    }


def state_space_heads(held: Fields, full_dim: int, dim: int) -> Fields:
    """Returns heads, head_dim, groups and state of Mamba-2 at width `dim`. A total head width that is a multiple of the
    model's width stays one. Several heads still share a group, and the ratio of a state to a head stays."""
    times, unit = held["heads"] * held["head_dim"] / full_dim, head_width(dim)
    if times == int(times):
        widths = [width for width in range(1, int(times) * dim + 1) if int(times) * dim % width == 0]
        head_dim = min(widths, key=lambda width: abs(log2(width / unit)))
        heads = int(times) * dim // head_dim
    else:
        head_dim, heads = unit, max(1, round(times * dim / unit))
    most = max(1, heads // 2) if held["groups"] < held["heads"] else heads
    groups = next(number for number in range(min(held["groups"], most), 0, -1) if heads % number == 0)
    state = max(1, round(held["state"] * head_dim / held["head_dim"]))
    least = held["min_step"] and MIN_STEP  # a model generates as it was trained
    return {"heads": heads, "head_dim": head_dim, "groups": groups, "state": state, "min_step": least}


def key_and_value_heads(held: Fields, full_dim: int, dim: int) -> Fields:
    """Returns the heads of a recurrence and their widths at width `dim`. The ratio of value heads to key heads stays as
    at `full_dim`."""
    unit, shared = head_width(dim), held["value_heads"] // held["key_heads"]
    width = dim * min(held["value_heads"] * held["value_dim"] / full_dim, MAX_WIDTH)
    keys = max(1, round(width / (shared * unit)))
    key_dim = max(1, round(held["key_dim"] * unit / held["value_dim"]))
    return {"key_heads": keys, "value_heads": shared * keys, "key_dim": key_dim, "value_dim": unit}


def plain_heads(held: Fields, full_dim: int, dim: int) -> Fields:
    """Returns heads and head_dim at width `dim`, for a recurrence whose keys and values are equally wide."""
    width = dim * min(held["heads"] * held["head_dim"] / full_dim, MAX_WIDTH)
    return {"heads": max(1, round(width / head_width(dim))), "head_dim": head_width(dim)}


def score_scale(held: Fields, new: Fields) -> float:
    """Returns the scale of the scores for the head widths in `new`: an integer ** -0.5, with the ratio to the width
    that it has in `held`. YaRN's gain is dropped together with YaRN."""
    before, after = (sum(f.get(name, 0) for name in ("head_dim", "nope_dim", "rope_dim")) for f in (held, held | new))
    stretched = isinstance(getattr(held.get("rope"), "scaling", None), YarnScaling)
    ratio = 1.0 if stretched else held["scale"] ** -2 / before
    return float(max(1, round(after * ratio)) ** -0.5)


def _router(router: Any, before: int, experts: int, vocab: int) -> Any:
    """Returns the router for fewer experts. k keeps its ratio, and is at least 2 where weights are renormalised. Groups
    stay large enough to choose from. A hash router's table holds `vocab` tokens."""
    held: Fields = {field.name: getattr(router, field.name) for field in fields(router)}
    least = 1 if router.scales_input else min(MIN_K, before)  # weights of scaled inputs are not renormalised
    k = min(experts, max(least, round(held["k"] * experts / before)))
    if "groups" not in held:
        return replace(router, k=k, **({"vocab": vocab} if "vocab" in held else {}))
    most = min(held["groups"], max(experts // 2, 1))
    groups = next(number for number in range(most, 0, -1) if experts % number == 0)
    keep = max(1, round(groups * held["keep"] / held["groups"]), ceil(k * groups / experts))
    return replace(router, k=k, groups=groups, keep=keep)


def _experts(held: Fields, small: Fields, new: Fields) -> Fields:
    """Returns routed and shared experts that are wider by the same factor by which a token visits fewer. The ratio of
    a token's total expert width to a dense feed-forward stays."""
    shared = small["shared"].width / small["expert"].width if "shared" in small else 0
    wider = (held["router"].k + shared) / (new["router"].k + shared)
    return {name: expert.with_width(max(1, round(expert.width * wider))) for name, expert in small.items()}
