"""Blocks of published models, brought to the width of another model that takes them."""

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

CONTEXT = 4096  # tokens, where neither model states its context


def borrowed(kind: type[Spec], lender: Decoder, taker: Decoder, form: Alias | None = None) -> Spec | None:
    """Returns the first block of a kind, or of a `form` of it, in `lender`, in proportion to the width of `taker`; None
    if there is none.

    A taker as wide as published models takes the sizes in the ratio of the widths. A narrower one, such as a tiny or
    scaled model, takes them as its own scaled form would have them (zoo.swaps.proportions).
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
    """Returns the model from which a kind is borrowed where no other is named: of the first family with such blocks,
    the smallest size that has them. None for a kind that no published model has."""
    for family in families().values():
        for size in sorted(family.SIZES.values(), key=lambda size: size.params):
            if any(type(node) is kind for node in size.spec.walk()):
                spec: Decoder = size.spec
                return spec
    return None


@dataclass(frozen=True)
class WidthRatio:
    """The rules by which a block goes from one published width to another: the number of heads and the widths of
    feed-forwards change in the ratio of the models' widths. Widths of heads, ranks, states, windows and the rotation
    stay.

    Has the methods of `Proportions` that blocks call in `resized`.
    """

    full: Decoder
    dim: int
    context: int
    vocab: int

    def scale(self, part: Any) -> Any:
        """Returns a part at this width, and every part in it."""
        return part if isinstance(part, Position) else part.map(self.scale, **part.resized(self))

    def share(self, width: int) -> int:
        """A width or a number of heads in the ratio that it has to the model's width."""
        return max(1, round(width * self.dim / self.full.dim))

    def grouped_heads(self, attn: Any) -> Fields:
        """The heads that share a key stay as many; a single KV head stays one."""
        if attn.kv_heads == 1:
            return {"heads": self.share(attn.heads)}
        kv_heads = self.share(attn.kv_heads)
        return {"heads": kv_heads * (attn.heads // attn.kv_heads), "kv_heads": kv_heads}

    def latent_heads(self, attn: Any) -> Fields:
        """A rank is at most the model's width, above which a latent compresses nothing."""
        ranks = {name: min(self.dim, getattr(attn, name)) for name in ("q_rank", "kv_rank") if getattr(attn, name)}
        return {"heads": self.share(attn.heads), **ranks}

    def heads_of_one_key(self, attn: Any) -> Fields:
        """The heads of a group stay as many."""
        groups = self.share(attn.groups)
        return {
            "heads": groups * (attn.heads // attn.groups),
            "groups": groups,
            "q_rank": min(self.dim, attn.q_rank),
        }

    def state_space_heads(self, block: Any) -> Fields:
        """The heads that share B and C stay as many; a single group stays one."""
        if block.groups == 1:
            return {"heads": self.share(block.heads)}
        groups = self.share(block.groups)
        return {"heads": groups * (block.heads // block.groups), "groups": groups}

    def key_and_value_heads(self, block: Any) -> Fields:
        """The values that share a key stay as many."""
        keys = self.share(block.key_heads)
        return {"key_heads": keys, "value_heads": keys * (block.value_heads // block.key_heads)}

    def plain_heads(self, block: Any) -> Fields:
        """Heads whose keys and values are equally wide."""
        return {"heads": self.share(block.heads)}

    def indexer(self, indexer: Any, attn: Any, new: Fields) -> Any:
        """An indexer; it chooses no more tokens than a context has."""
        return replace(indexer, k=self.window(indexer.k))

    def compressor(self, compressor: Any, attn: Any, new: Fields) -> Any:
        """A compressor, unchanged."""
        return compressor

    def experts(self, moe: Any) -> Fields:
        """The router, with a table for this vocabulary if it has one. The number of experts stays."""
        return {"router": moe.router.among(moe.experts, moe.experts, self.vocab)}

    def window(self, window: int) -> int:
        """Tokens: the window, and at most the context."""
        return min(window, self.context)


@cache
def _narrowest_width() -> int:
    return min(size.spec.dim for family in families().values() for size in family.SIZES.values())


def _blocks(spec: Decoder) -> Iterator[Any]:
    """The blocks of all branches of distinct layers."""
    return (branch.block for layer in dict.fromkeys(spec.layers) for _, branch in layer.branches())


def _among_experts(router: Router, lent: Any, taker: Decoder) -> Router:
    """A router for as many experts as the taker's first mixture has; as it is if the taker has none."""
    before, after = (next((n.experts for n in spec.walk() if hasattr(n, "experts")), None) for spec in (lent, taker))
    return router.among(after, before, taker.vocab) if before and after and before != after else router
