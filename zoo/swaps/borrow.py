"""Borrows a block from a published model for another model, and scales it to that model's width."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from zoo.architectures import families
from zoo.blocks.feed_forward import FeedForward
from zoo.blocks.positions import Position
from zoo.blocks.routers import Router
from zoo.model.decoder import Decoder
from zoo.registry import Alias, Spec
from zoo.swaps.proportions import Fields, Proportions

CONTEXT = 4096  # tokens, if neither model states a context


def borrowed(kind: type[Spec], lender: Decoder, taker: Decoder, form: Alias | None = None) -> Spec | None:
    """Returns the first block of a kind (or of a `form` of the kind) in `lender`, scaled to the width of `taker`.
    Returns None if `lender` has no such block.

    If `taker` is as wide as a published model, `WidthRatio` has the rules. If it is narrower, such as a tiny or scaled
    model, the rules are those that scale whole models (zoo.swaps.proportions).
    """

    def first(part: Spec) -> Spec | None:
        found = [node for node in part.walk() if isinstance(node, kind) and (form is None or form.holds(node))]
        return min(found, key=lambda node: type(node) is not kind, default=None)

    context = taker.context or lender.context or CONTEXT
    rules = Proportions if taker.dim < _narrowest_width() else WidthRatio
    to: Any = rules(lender, taker.dim, context, taker.vocab)
    for part in _blocks(lender):
        if first(part) is not None:
            small = to.scale(part)
            if isinstance(small, FeedForward):
                small = small.with_width(to.share(small.width))
            found = first(small)
            return _among_experts(found, part, taker) if isinstance(found, Router) else found
    return first(lender)


@cache
def introduced_by(kind: type[Spec]) -> Decoder | None:
    """Returns the default lender of a kind: the smallest size with such a block, in the earliest family that has one.
    Returns None for a kind that no published model has."""
    for family in families().values():
        for size in sorted(family.SIZES.values(), key=lambda size: size.params):
            if any(type(node) is kind for node in size.spec.walk()):
                spec: Decoder = size.spec
                return spec
    return None


@dataclass(frozen=True)
class WidthRatio:
    """Rules that scale a block from one published width to another. The number of heads and the widths of feed-forwards
    are multiplied by the ratio of the models' widths. Widths of heads, states and rotations do not change, nor do ranks
    and windows that still fit. It implements the methods of `Proportions` that blocks call in `resized`."""

    full: Decoder
    dim: int
    context: int
    vocab: int

    def scale(self, part: Any) -> Any:
        """Returns a part, including all parts in it, at this width."""
        return part if isinstance(part, Position) else part.map(self.scale, **part.resized(self))

    def share(self, width: int) -> int:
        """Returns a width or a number of heads, multiplied by the ratio of the models' widths."""
        return max(1, round(width * self.dim / self.full.dim))

    def grouped_heads(self, attn: Any) -> Fields:
        """Returns the heads and the KV heads. The number of heads per KV head does not change; a single KV head stays
        single."""
        if attn.kv_heads == 1:
            return {"heads": self.share(attn.heads)}
        kv_heads = self.share(attn.kv_heads)
        return {"heads": kv_heads * (attn.heads // attn.kv_heads), "kv_heads": kv_heads}

    def latent_heads(self, attn: Any) -> Fields:
        """Returns the heads and the ranks. A rank is at most the width: a wider latent would compress nothing."""
        ranks = {name: min(self.dim, getattr(attn, name)) for name in ("q_rank", "kv_rank") if getattr(attn, name)}
        return {"heads": self.share(attn.heads), **ranks}

    def heads_of_one_key(self, attn: Any) -> Fields:
        """Returns the heads, their groups and the query rank. Each group has as many heads as before."""
        groups = self.share(attn.groups)
        return {
            "heads": groups * (attn.heads // attn.groups),
            "groups": groups,
            "q_rank": min(self.dim, attn.q_rank),
        }

    def state_space_heads(self, block: Any) -> Fields:
        """Returns the heads and their groups. The number of heads per group does not change; a single group stays
        single."""
        if block.groups == 1:
            return {"heads": self.share(block.heads)}
        groups = self.share(block.groups)
        return {"heads": groups * (block.heads // block.groups), "groups": groups}

    def key_and_value_heads(self, block: Any) -> Fields:
        """Returns the key heads and value heads. The number of value heads per key head does not change."""
        keys = self.share(block.key_heads)
        return {"key_heads": keys, "value_heads": keys * (block.value_heads // block.key_heads)}

    def plain_heads(self, block: Any) -> Fields:
        """Returns the heads of a block whose keys and values are equally wide."""
        return {"heads": self.share(block.heads)}

    def indexer(self, indexer: Any, attn: Any, new: Fields) -> Any:
        """Returns an indexer that chooses no more tokens than the context has."""
        return replace(indexer, k=self.window(indexer.k))

    def compressor(self, compressor: Any, attn: Any, new: Fields) -> Any:
        """Returns the compressor, unchanged."""
        return compressor

    def experts(self, moe: Any) -> Fields:
        """Returns the router. A table of token ids is for this vocabulary. The number of experts is kept."""
        return {"router": moe.router.among(moe.experts, moe.experts, self.vocab)}

    def window(self, window: int) -> int:
        """Returns the window in tokens, at most the whole context."""
        return min(window, self.context)


@cache
def _narrowest_width() -> int:
    return min(size.spec.dim for family in families().values() for size in family.SIZES.values())


def _blocks(spec: Decoder) -> Iterator[Any]:
    """Returns the blocks of all branches of distinct layers."""
    return (branch.block for layer in dict.fromkeys(spec.layers) for _, branch in layer.branches())


def _among_experts(router: Router, lent: Any, taker: Decoder) -> Router:
    """Returns the router for the number of experts in the first mixture of `taker`; unchanged if it has no mixture."""
    before, after = (next((n.experts for n in spec.walk() if hasattr(n, "experts")), None) for spec in (lent, taker))
    return router.among(after, before, taker.vocab) if before and after and before != after else router
