"""Scales a published model to another width and keeps its proportions: heads, latents, windows, RoPE, experts.

A block's `resized` names the fields that scale and the rule for each; `Proportions` has the rules.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, log2
from typing import Any

from zoo.blocks.positions import LearnedPositions
from zoo.blocks.rope_scaling import YarnScaling
from zoo.model.decoder import Decoder
from zoo.registry import Spec
from zoo.swaps.tiny import MIN_STEP

EXPERTS = 16
WINDOWS_IN_CONTEXT = 8  # a window is at least context / 8
ENTRIES_IN_CONTEXT = 16  # minimum compressed entries in a context; each stands for several tokens
MAX_WIDTH = 1.5  # heads * head_dim / dim: wider attention leaves a small model too little feed-forward
MIN_HEAD_DIM, MAX_HEAD_DIM = 8, 256
MIN_INDEX_HEADS = 16  # relu sets all scores of one in 2^heads tokens to 0: their order is arbitrary
USUAL_HEAD_DIM = 12  # narrower heads learn recall late or never, and are no faster in attention kernels
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
        """Returns `spec`, whose layers are those of `full`, at this width and context."""
        small = {layer: self.scale(layer) for layer in dict.fromkeys(spec.layers)}
        layers = tuple(small[layer] for layer in spec.layers)
        embed_scale = self.dim**0.5 if self.full.embed_scale == self.full.dim**0.5 else self.full.embed_scale
        positions = spec.positions and LearnedPositions(self.context)
        per_layer = spec.per_layer and self.scale(spec.per_layer)
        placed = replace(spec, context=self.context, positions=positions)
        return replace(placed, dim=self.dim, layers=layers, embed_scale=embed_scale, per_layer=per_layer)

    def scale(self, part: Any) -> Any:
        """Returns a part, including all parts in it, at this width."""
        return part.map(self.scale, **part.resized(self))

    def share(self, width: int) -> int:
        """Returns a width, multiplied by the ratio of the models' widths."""
        return max(1, round(width * self.dim / self.full.dim))

    def heads(self, width: int, unit: int) -> int:
        """Returns the number of heads that are `unit` wide. Their total width has the same ratio to the model's width
        as the total `width` in the full model."""
        return max(1, round(self.dim * min(width / self.full.dim, MAX_WIDTH) / unit))

    def grouped_heads(self, attn: Any) -> Fields:
        """Returns heads, kv_heads and head_dim of grouped-query attention, and the scale of its scores.

        A config has one number of heads for all layers. So if a layer has as many heads as the first layer, both get
        the same new number, even if their KV heads or head_dim differ. The layer keeps its ratios to the first layer.
        """
        held = vars(attn)
        every = (vars(part) for layer in self.full.layers for part in layer.walk() if hasattr(part, "kv_heads"))
        first: Fields = next(every, held)
        names = ("kv_heads", "head_dim")
        if first["heads"] != held["heads"] or all(first[name] == held[name] for name in names):
            return _with_scale(held, grouped_heads(held, self.full.dim, self.dim))
        new = grouped_heads(first, self.full.dim, self.dim)
        same = held["kv_heads"] == first["kv_heads"]
        most = new["kv_heads"] if same else max(1, round(held["kv_heads"] * new["heads"] / held["heads"]))
        kv_heads = next(number for number in range(most, 0, -1) if new["heads"] % number == 0)
        head_dim = 2 * max(1, round(new["head_dim"] * held["head_dim"] / first["head_dim"] / 2))
        return _with_scale(held, new | {"kv_heads": kv_heads, "head_dim": head_dim})

    def latent_heads(self, attn: Any) -> Fields:
        """Returns heads, their widths, the ranks of the latents and the scale of the scores. Every width and rank keeps
        its ratio to nope_dim. A rank is at most `dim`: a wider latent would compress nothing."""
        held, unit = vars(attn), head_width(self.dim)
        new = {name: max(1, round(held[name] * unit / attn.nope_dim)) for name in ("v_dim", "nope_dim")}
        for name in ("q_rank", "kv_rank"):
            if held[name]:
                new[name] = min(self.dim, max(1, round(held[name] * unit / attn.nope_dim)))
        new["rope_dim"] = 2 * max(1, round(attn.rope_dim * unit / attn.nope_dim / 2))
        return _with_scale(held, new | {"heads": self.heads(attn.heads * attn.v_dim, new["v_dim"])})

    def heads_of_one_key(self, attn: Any) -> Fields:
        """Returns heads that share one key and value, their groups and their ranks. Widths keep their ratios. If
        several heads shared a group, several still do."""
        unit = head_width(self.dim)
        heads = self.heads(attn.heads * attn.head_dim, unit)
        groups = _groups(attn, heads)
        share = attn.o_rank * attn.groups / (attn.heads * attn.head_dim)
        return {
            "heads": heads,
            "head_dim": unit,
            "rope_dim": 2 * max(1, round(attn.rope_dim * unit / attn.head_dim / 2)),
            "q_rank": min(self.dim, max(1, round(attn.q_rank * unit / attn.head_dim))),
            "groups": groups,
            "o_rank": max(1, round(share * heads * unit / groups)),
        }

    def state_space_heads(self, block: Any) -> Fields:
        """Returns heads, head_dim, groups, state and min_step of a state-space block. A total width that is a multiple
        of the model's width stays one. Several heads still share a group. The state keeps its ratio to head_dim."""
        times, unit = block.heads * block.head_dim / self.full.dim, head_width(self.dim)
        if times == int(times):
            widths = [width for width in range(1, int(times) * self.dim + 1) if int(times) * self.dim % width == 0]
            head_dim = min(widths, key=lambda width: abs(log2(width / unit)))
            heads = int(times) * self.dim // head_dim
        else:
            head_dim, heads = unit, max(1, round(times * self.dim / unit))
        state = max(1, round(block.state * head_dim / block.head_dim))
        least = block.min_step and MIN_STEP  # below every time step: decode then computes the same as training
        groups = _groups(block, heads)
        return {"heads": heads, "head_dim": head_dim, "groups": groups, "state": state, "min_step": least}

    def key_and_value_heads(self, block: Any) -> Fields:
        """Returns the heads of a recurrent block and their widths. The number of value heads per key head does not
        change."""
        unit, shared = head_width(self.dim), block.value_heads // block.key_heads
        keys = self.heads(block.value_heads * block.value_dim, shared * unit)
        key_dim = max(1, round(block.key_dim * unit / block.value_dim))
        return {"key_heads": keys, "value_heads": shared * keys, "key_dim": key_dim, "value_dim": unit}

    def plain_heads(self, block: Any) -> Fields:
        """Returns heads and head_dim of a recurrent block whose keys and values are equally wide."""
        unit = head_width(self.dim)
        return {"heads": self.heads(block.heads * block.head_dim, unit), "head_dim": unit}

    def indexer(self, indexer: Any, attn: Any, new: Fields) -> Any:
        """Returns an indexer for attention `attn` whose sizes become `new`. The indexer keeps its ratios to the
        attention heads. Its k scales like a window."""
        width = max(1, round(indexer.head_dim * new["rope_dim"] / attn.rope_dim))
        return _index_heads(indexer, attn, new, head_dim=width, k=self.window(indexer.k))

    def compressor(self, compressor: Any, attn: Any, new: Fields) -> Any:
        """Returns a compressor for attention whose sizes become `new`, with at least ENTRIES_IN_CONTEXT entries."""
        every = max(2, min(compressor.every, self.context // ENTRIES_IN_CONTEXT))
        indexer = compressor.indexer
        if indexer is not None:
            width = max(round(indexer.head_dim * new["head_dim"] / attn.head_dim), new["rope_dim"])
            k = max(1, self.window(indexer.k * compressor.every) // every)
            indexer = _index_heads(indexer, attn, new, head_dim=width, k=k)
        return replace(compressor, every=every, indexer=indexer)

    def experts(self, moe: Any) -> Fields:
        """Returns fewer experts, and a router for them. A token visits fewer experts, so the experts are wider: the
        total width that a token visits keeps its ratio to a dense feed-forward."""
        experts = min(EXPERTS, moe.experts)
        router = moe.router.among(experts, moe.experts, self.vocab)
        shared = moe.shared.width / moe.expert.width if moe.shared else 0
        wider = (moe.router.k + shared) / (router.k + shared)
        parts = {"expert": moe.expert, **({"shared": moe.shared} if moe.shared else {})}
        small = {name: self.scale(each).with_width(round(each.width * wider) or 1) for name, each in parts.items()}
        return {"experts": experts, "router": router, **small}

    def window(self, window: int) -> int:
        """Returns the window in tokens: its share of the context is as in the full model, at least 1/8."""
        share = window / (self.full.context or window * WINDOWS_IN_CONTEXT)
        return min(self.context, max(round(share * self.context), ceil(self.context / WINDOWS_IN_CONTEXT)))

    def theta(self, rope: Any) -> float:
        """Returns RoPE's base, rounded to three digits. The base scales with the number of tokens that the layers of
        this RoPE attend to: their window, or the context. If the context was extended, the original context is used."""
        windows = self._windows.get(rope, {None})
        if None in windows:
            trained: float | None = self.full.context
            if trained and rope.scaling:
                trained = getattr(rope.scaling, "original", None) or trained / getattr(rope.scaling, "factor", 1)
            ratio = self.context / (trained or self.context)
        else:
            ratio = self.window(max(windows)) / max(windows)
        return max(float(f"{rope.theta * ratio:.3g}"), MIN_THETA)

    @cached_property
    def _windows(self) -> dict[Spec, set[Any]]:
        """Maps each RoPE to the window sizes of the layers that use it. None stands for layers that see beyond a
        window."""
        found: dict[Spec, set[Any]] = {}
        for layer in dict.fromkeys(self.full.layers):
            for part in layer.walk():
                cache = layer.cache_spec()
                found.setdefault(part, set()).add(None if cache.entries else cache.reach.limit)
        return found


def grouped_heads(held: Fields, full_dim: int, dim: int) -> Fields:
    """Returns heads, kv_heads and head_dim at width `dim`, in the ratios that they have at width `full_dim`.

    A single KV head stays single. Several KV heads stay several if head_dim is then at least USUAL_HEAD_DIM. Among the
    possible numbers of heads, the one with head_dim nearest to `head_width(dim)` is chosen. If heads * head_dim equals
    the width of the full model, the scaled heads * head_dim equals `dim` where possible.
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


def _index_heads(indexer: Any, attn: Any, new: Fields, **sizes: int) -> Any:
    """Returns an indexer with these `sizes`. Its number of heads keeps its ratio to that of `attn`."""
    return replace(indexer, heads=max(MIN_INDEX_HEADS, round(indexer.heads * new["heads"] / attn.heads)), **sizes)


def _groups(block: Any, heads: int) -> int:
    """Returns the largest number of groups, up to the block's, that divides `heads`. Several heads still share one."""
    most = max(1, heads // 2) if block.groups < block.heads else heads
    return next(number for number in range(min(block.groups, most), 0, -1) if heads % number == 0)


def head_width(dim: int) -> int:
    """Returns a usual head_dim for a model of this width: the power of two nearest to 2 * sqrt(dim), from 8 to 128."""
    return int(2 ** min(max(round(log2(2 * dim**0.5)), 3), 7))


def _with_scale(held: Fields, new: Fields) -> Fields:
    return new | ({"scale": score_scale(held, new)} if held["scale"] else {})


def score_scale(held: Fields, new: Fields) -> float:
    """Returns the scale of the scores for the head widths in `new`: n ** -0.5. The ratio of the integer n to the head
    width is that in `held`. YaRN's gain is dropped together with YaRN."""
    before, after = (sum(f.get(name, 0) for name in ("head_dim", "nope_dim", "rope_dim")) for f in (held, held | new))
    stretched = isinstance(getattr(held.get("rope"), "scaling", None), YarnScaling)
    ratio = 1.0 if stretched else held["scale"] ** -2 / before
    return float(max(1, round(after * ratio)) ** -0.5)
