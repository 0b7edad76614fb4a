"""Grouped-query attention (Ainslie et al. 2023) and its special cases: multi-head, multi-query, windows, chunks, and
keys and values that several layers share."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from zoo.blocks.norms import Norm
from zoo.blocks.parts import Part, Parts, PartsModule, TableMixer, matrix, normed, vector
from zoo.blocks.positions import Position, Temperature
from zoo.core.collectives import Group
from zoo.core.forward_context import ForwardContext, LayerCache, Mask
from zoo.core.ops.attention import attention
from zoo.costs import Breakdown, CacheSpec, Chunk, Full, Reach, Window, linear_flops
from zoo.errors import IndivisibleError
from zoo.facts import Fact
from zoo.registry import Alias, Spec
from zoo.sharding import Divide, Exchange, Rank

__all__ = ["GQA", "KVSource", "SharedKV"]


@dataclass(frozen=True)
class GQA(TableMixer):
    """Attention of `heads` query heads over `kv_heads` key and value heads of `head_dim` (values: `v_dim`, if given).

    kv_heads == heads is multi-head attention (MHA), kv_heads == 1 multi-query (MQA). With a `window` a token attends to
    the last `window` tokens, itself included. With a `chunk` it attends to the tokens of its own chunk (Llama 4).

    `qk_norm` normalises queries and keys before rotation, over each head or the whole projection. `scale` multiplies
    the scores; None is head_dim**-0.5. `bias`: all four projections have biases, or only queries, keys and values
    ("qkv"). `sinks`: each head has an extra learned logit in the softmax, without a value. `gate`: the output is
    multiplied by the sigmoid of a projection of x, with one gate per element or per head (Qiu et al. 2025, "Gated
    Attention", section 2.2). `cap`: scores x become cap * tanh(x / cap). `temperature` multiplies the queries. `v_norm`
    normalises the values of each head. `keys_as_values`: values are the keys before norm and rotation (Gemma 4).
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: Position
    window: int | None = None
    qk_norm: Norm | None = None
    qk_norm_over: Literal["head", "projection"] = "head"
    scale: float | None = None
    bias: bool | Literal["qkv"] = False
    sinks: bool = False
    chunk: int | None = None
    v_dim: int | None = None
    gate: Literal["element", "head"] | None = None
    cap: float | None = None
    temperature: Temperature | None = None
    v_norm: Norm | None = None
    keys_as_values: bool = False

    aliases: ClassVar = {
        "MHA": Alias(lambda attn: attn.kv_heads == attn.heads, sets={"kv_heads": lambda values: values["heads"]}),
        "MQA": Alias(lambda attn: attn.kv_heads == 1, sets={"kv_heads": lambda values: 1}),
        "SWA": Alias(lambda attn: attn.window is not None, {"chunk": lambda values: None}, needs={"window": 512}),
    }

    cache_width: ClassVar = "head_dim"
    divides: ClassVar = {"heads": Divide.EVENLY, "kv_heads": Divide.REPEATED}

    def check(self) -> None:
        self.require(self.heads % self.kv_heads == 0, f"kv_heads={self.kv_heads} must divide heads={self.heads}")
        self.require(self.head_dim % 2 == 0, f"head_dim={self.head_dim} must be even: rotation pairs its halves")
        self.require(not (self.window and self.chunk), f"window={self.window} and chunk={self.chunk}: give one of them")
        self.require(not (self.v_dim and self.keys_as_values), f"v_dim={self.v_dim}, but keys are values")

    def resized(self, to: Any) -> dict[str, Any]:
        windows = {"window": self.window, "chunk": self.chunk}
        return to.grouped_heads(self) | {name: to.window(size) for name, size in windows.items() if size}

    def build(self, dim: int) -> nn.Module:
        return GQAModule(self, self.parts(dim))

    @property
    def sink_heads(self) -> int:
        return self.heads if self.sinks else 0

    @property
    def value_dim(self) -> int:
        """Width of a value, in elements."""
        return self.v_dim or self.head_dim

    @property
    def reach(self) -> Reach:
        """The earlier tokens that a token attends to."""
        return Window(self.window) if self.window else Chunk(self.chunk) if self.chunk else Full()

    def parts(self, dim: int) -> Parts:
        keys, values, out = self.kv_heads * self.head_dim, self.kv_heads * self.value_dim, self.heads * self.value_dim
        bias, gates = bool(self.bias), self.heads if self.gate == "head" else out
        parts: Parts = {
            "q": matrix(dim, self.heads * self.head_dim, bias, rows="heads"),
            "k": matrix(dim, keys, bias, rows="kv_heads"),
            "v": None if self.keys_as_values else matrix(dim, values, bias, rows="kv_heads"),
            "o": matrix(out, dim, self.bias is True, columns="heads"),
            "gate": matrix(dim, gates, rows="heads") if self.gate else None,
            "q_norm": self._qk_norm("heads"),
            "k_norm": self._qk_norm("kv_heads"),
            "v_norm": normed(self.v_norm, self.value_dim) if self.v_norm else None,
            "sinks": vector(self.heads, rows="heads") if self.sinks else None,
        }
        return parts

    def _qk_norm(self, heads: str) -> Part | None:
        """Returns the norm of the queries (`heads` is "heads") or keys ("kv_heads")."""
        if self.qk_norm is None:
            return None
        if self.qk_norm_over == "head":
            return normed(self.qk_norm, self.head_dim)
        return normed(self.qk_norm, getattr(self, heads) * self.head_dim, rows=heads)

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        pairs = (self.reach.pairs if causal else self.reach.dense_pairs)(past, new)
        scores = linear_flops(pairs, 1, self.heads * (self.head_dim + self.value_dim))  # q @ k.T and weights @ v
        return {"projections": self.projection_flops(dim, new), "scores": scores}

    def cache_spec(self) -> CacheSpec:
        streams = ("k", (self.kv_heads, self.head_dim)), ("v", (self.kv_heads, self.value_dim))
        return CacheSpec(per_token=streams, reach=self.reach)

    def shard(self, rank: Rank) -> Self:
        norm = self.qk_norm if self.qk_norm_over == "projection" else None
        if norm and norm.means == 0:
            raise IndivisibleError(f"{type(self).__name__}: its norm over all heads", rank.ranks)
        return super().shard(rank)

    def exchanges(self, dim: int, ranks: int) -> tuple[Exchange, ...]:
        norms = [part for part in self.parts(dim).values() if part and part.is_norm and part.rows]
        means = len(norms) * self.qk_norm.means if self.qk_norm else 0
        return *(Exchange("all-reduce", 1, in_float32=True),) * means, *super().exchanges(dim, ranks)

    def tables(self) -> tuple[tuple[Spec, int], ...]:
        return ((self.rope, self.head_dim), *(((self.temperature, 1),) if self.temperature else ()))

    def names(self) -> list[str]:
        held = super().names()
        return held[1:] if {"MHA", "MQA"} & set(held) else held  # MHA or MQA replaces the kind

    def facts(self) -> tuple[Fact, ...]:
        kind = {self.heads: "MHA", 1: "MQA"}.get(self.kv_heads, "GQA")
        heads = Fact("heads", (self.heads, self.kv_heads, self.head_dim), "heads", "{} heads on {} KV heads of {}")
        if kind != "GQA":
            heads = Fact("heads", (self.heads, self.head_dim), "heads", "{} heads of {}")
        qk_norm = f"QK-norm{_weightless(self.qk_norm)} per {{}}"
        seen = "window" if self.window else "chunk" if self.chunk else "reach"
        return self.in_use(
            Fact("kind", kind),
            heads,
            Fact("v_dim", self.v_dim, phrase="values of {}", noun="value width"),
            Fact("keys_as_values", phrase="values are the raw keys", noun="keys reused as values"),
            Fact("rope", self.rope),
            *([] if self.reach == Full() else [Fact(seen, self.reach.describe())]),
            Fact("qk_norm", self.qk_norm_over, phrase=qk_norm, noun=f"QK-norm per {self.qk_norm_over}"),
            Fact("v_norm", phrase=f"V-norm{_weightless(self.v_norm)}", noun="V-norm"),
            Fact("scale", (self.scale or 1) ** -2, phrase="scale {:.4g}^-1/2", noun="attention scale"),
            Fact("cap", self.cap, phrase="scores capped at {:g}", noun="score cap"),
            Fact("temperature", self.temperature, noun="temperature by position"),
            Fact("bias", phrase="biases on q, k, v" if self.bias == "qkv" else "biases", noun="biases"),
            Fact("sinks", phrase="sinks"),
            Fact("gate", self.gate, phrase="output gate by {}", noun="output gate"),
            Fact("qk_norm_over", ""),
        )


def _weightless(norm: Norm | None) -> str:
    return "" if norm is None or norm.params(1) else " without weight"


class GQAModule(PartsModule):
    """Grouped-query attention."""

    def __init__(self, spec: GQA, parts: Parts) -> None:
        super().__init__(spec, parts)
        self.scale = spec.head_dim**-0.5 if spec.scale is None else spec.scale
        if spec.qk_norm and spec.scale:  # fresh scores then have a variance of at most one (Gemma 4: scale 1)
            self.q_norm.identity["weight"] += min(spec.head_dim**-0.5 / spec.scale, 1.0) - 1.0

    def forward(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        q = self._positioned(self.q(x), self.q_norm, ctx)
        if self.spec.temperature is not None:
            q = (q * ctx.tables[self.spec.temperature, 1]).to(q.dtype)
        k, v, mask = self.keys_and_values(x, ctx, cache)
        out = attention(q, k, v, mask, self.scale, self.sinks, self.spec.cap).transpose(1, 2)
        if self.gate is not None:  # (b, t, h * w) or, by head, (b, t, h * 1)
            out = out * torch.sigmoid(self.gate(x)).unflatten(-1, (self.spec.heads, -1))
        return self.o(out.flatten(2))

    def over_ranks(self, whole: GQA, group: Group) -> None:
        """Makes norms over the whole projection average over the heads of all ranks, by giving them the group."""
        if whole.qk_norm and whole.qk_norm_over == "projection":
            for name, part in whole.parts(1).items():
                if part and part.is_norm and part.rows:
                    getattr(self, name).group = group

    def keys_and_values(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> tuple[Tensor, Tensor, Mask]:
        """(b, t, dim) -> the keys (b, g, s, d) and values (b, g, s, w) to attend over, and their mask."""
        raw = self.k(x)
        v = (raw if self.v is None else self.v(x)).unflatten(-1, (-1, self.spec.value_dim)).transpose(1, 2)
        if self.v_norm is not None:
            v = self.v_norm(v)
        k, v, mask = cache.append(ctx, self._positioned(raw, self.k_norm, ctx), v)
        return k, v, mask

    def _positioned(self, x: Tensor, norm: nn.Module | None, ctx: ForwardContext) -> Tensor:
        """(b, t, h * d) -> (b, h, t, d), normalised and rotated."""
        spec = self.spec
        if norm is not None and spec.qk_norm_over == "projection":
            x = norm(x)
        x = x.unflatten(-1, (-1, spec.head_dim)).transpose(1, 2)
        if norm is not None and spec.qk_norm_over == "head":
            x = norm(x)
        return spec.rope.rotate(x, ctx.tables[spec.rope, spec.head_dim])


def _key(attn: GQA) -> Hashable:
    """Returns the key under which layers share K/V. Layers with equal heads, widths and reach have the same key."""
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
        return *super().facts(), Fact("hands_on", phrase="K/V reused by later layers", noun="K/V reused later")


class _KVSource(GQAModule):
    def keys_and_values(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> tuple[Tensor, Tensor, Mask]:
        k, v, mask = super().keys_and_values(x, ctx, cache)
        ctx.hand_on(_key(self.spec), (*cache.shared(x, k, v), ctx.views[cache.geometry].keys, mask))
        return k, v, mask


@dataclass(frozen=True)
class SharedKV(GQA):
    """GQA over the keys and values of the nearest earlier KVSource with equal heads and reach. It projects and
    normalises only queries, and its own cache is empty."""

    def check(self) -> None:
        super().check()
        own = self.v_norm is not None or self.keys_as_values
        self.require(not own, "v_norm and keys_as_values belong to the layer that hands keys and values on")

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
