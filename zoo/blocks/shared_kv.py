"""K/V sharing between layers: later layers attend to the keys and values of an earlier one and keep none (Gemma 4 E2B,
E4B; Brandon et al. 2024, "Reducing Transformer Key-Value Cache Size with Cross-Layer Attention")."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from zoo.blocks.gqa import GQA, GQAModule
from zoo.blocks.parts import Parts
from zoo.core.forward_context import ForwardContext, LayerCache, Mask
from zoo.costs import CacheSpec
from zoo.facts import Fact

__all__ = ["KVSource", "SharedKV"]


def _key(attn: GQA) -> Hashable:
    """Returns the key under which layers share K/V: they share it if heads, widths and reach are equal."""
    kind, numbers = attn.reach.arguments
    return "keys and values", attn.kv_heads, attn.head_dim, attn.value_dim, kind, *numbers


@dataclass(frozen=True)
class KVSource(GQA):
    """GQA with keys and values that later layers reuse (SharedKV). Each later layer takes the nearest KVSource with
    equal heads and reach."""

    def build(self, dim: int) -> nn.Module:
        return _KVSource(self, self.parts(dim))

    def hands_on(self) -> tuple[Hashable, ...]:
        return (_key(self),)

    def names(self) -> list[str]:
        held = super().names()
        return [*(held[1:] if held[0] == "KVSource" else held), "KVSource"] if len(held) > 1 else held

    def facts(self) -> tuple[Fact, ...]:
        return *super().facts(), Fact("hands_on", phrase="keys and values handed on", noun="K/V reused later")


class _KVSource(GQAModule):
    def keys_and_values(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> tuple[Tensor, Tensor, Mask]:
        k, v, mask = super().keys_and_values(x, ctx, cache)
        ctx.hand_on(_key(self.spec), (*cache.shared(x, k, v), ctx.views[cache.geometry].keys, mask))
        return k, v, mask


@dataclass(frozen=True)
class SharedKV(GQA):
    """GQA over the keys and values of the nearest earlier KVSource with equal heads and reach. It projects and
    normalises only queries, and its cache keeps nothing."""

    def check(self) -> None:
        super().check()
        own = self.v_norm is not None or self.keys_as_values
        self.require(not own, "v_norm and keys_as_values are of the layer that hands keys and values on")

    def build(self, dim: int) -> nn.Module:
        return _SharedKV(self, self.parts(dim))

    def takes(self) -> Mapping[Hashable, str]:
        widths = f"{self.kv_heads} x {self.head_dim} and {self.value_dim}"
        return {_key(self): f"keys and values of {widths}, {self.reach.describe()}"}

    def parts(self, dim: int) -> Parts:
        return {name: part for name, part in super().parts(dim).items() if name not in ("k", "v", "k_norm")}

    def cache_spec(self) -> CacheSpec:
        return CacheSpec(reach=self.reach)

    def names(self) -> list[str]:
        return ["SharedKV", *(name for name in super().names() if name != "SharedKV")]

    def facts(self) -> tuple[Fact, ...]:
        taken = Fact("takes", phrase="keys and values of an earlier layer", noun="K/V of another layer")
        return *super().facts(), taken


class _SharedKV(GQAModule):
    def keys_and_values(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> tuple[Tensor, Tensor, Mask]:
        k, v, keys, mask = ctx.shared[_key(self.spec)]
        return k.narrow(2, 0, len(keys)), v.narrow(2, 0, len(keys)), mask
