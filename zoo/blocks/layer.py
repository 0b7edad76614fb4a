"""A layer: attention and feed-forward, each in a residual branch, and the placement of their norms."""

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from zoo.blocks.feed_forward import FeedForward
from zoo.blocks.moe import MoE
from zoo.blocks.norms import LayerScale, Norm
from zoo.blocks.per_layer import LayerInput
from zoo.blocks.positions import Position
from zoo.core.forward_context import ForwardContext, LayerCache, RouterOutput
from zoo.costs import CacheSpec
from zoo.facts import Fact
from zoo.registry import Block, Composite, Mixer, Spec

__all__ = ["Branch", "Layer", "PostNorm", "olmo", "post", "pre", "sandwich"]


class Placement(Composite, abstract=True):
    """A block, its residual connection and its norms."""

    block: Block

    @property
    def stream_spec(self) -> Spec | None:
        """The spec of the residual streams (zoo.blocks.hyper_connections.Streams); None if there is a single stream."""
        return None

    @property
    def reads_x_by(self) -> str | None:
        """The name of the submodule that x enters first: a norm, or the weights of the residual streams. None if x
        enters the block directly."""
        norm = self.block.input_norm
        return f"block.{norm}" if norm else None

    @property
    @abstractmethod
    def placement(self) -> str:
        """The placement of the norms: pre, olmo, sandwich, post, none, or hyper (for several residual streams)."""

    @property
    @abstractmethod
    def formula(self) -> str:
        """The formula of the output as a function of x, with f for the block."""

    def with_block(self, block: Block) -> Self:
        """Returns this placement with another block."""
        changes: dict[str, Any] = {"block": block}
        return replace(self, **changes)

    def facts(self) -> tuple[Fact, ...]:
        return Fact("kind", self.placement), Fact("pre", ""), Fact("post", "")  # the placement implies the norms

    def describe(self) -> str:
        return f"{self.formula}, f: {self.block.describe()}"

    def norms(self) -> tuple[Norm, ...]:
        """Returns the norms of this placement, in the order they are applied."""
        return tuple(child for name, child in self.children() if isinstance(child, Norm) and name != "block")


@dataclass(frozen=True)
class Branch(Placement):
    """x + multiplier * post(block(pre(x))). Both norms are optional: `pre` alone is pre-norm, `post` alone OLMo 2's
    placement, and both are Gemma 3's sandwich. Granite has a `multiplier`."""

    block: Block
    pre: Norm | None = None
    post: Norm | None = None
    multiplier: float = 1.0

    def build(self, dim: int) -> nn.Module:
        return _Branch(self, dim)

    @property
    def reads_x_by(self) -> str | None:
        return "pre" if self.pre else super().reads_x_by

    @property
    def placement(self) -> str:
        if self.pre:
            return "sandwich" if self.post else "pre"
        return "olmo" if self.post else "none"

    @property
    def formula(self) -> str:
        inside = "f(norm(x))" if self.pre else "f(x)"
        times = f"{self.multiplier:g} " if self.multiplier != 1 else ""
        return f"x + {times}norm({inside})" if self.post else f"x + {times}{inside}"

    def facts(self) -> tuple[Fact, ...]:
        multiplier = Fact("multiplier", self.multiplier, phrase="residual multiplier {:g}", noun="residual multiplier")
        return *super().facts(), *self.in_use(multiplier)


class ResidualBranch(nn.Module):
    """The module of a placement: the output of its `block` is added to the residual stream."""

    block: nn.Module
    normalises_output: bool  # before adding it: the scale of the block's last projection then has no effect


class _Branch(ResidualBranch):
    def __init__(self, spec: Branch, dim: int) -> None:
        super().__init__()
        self.pre = spec.pre.build(dim) if spec.pre else nn.Identity()
        self.block = spec.block.build(dim)
        self.post = spec.post.build(dim) if spec.post else nn.Identity()
        self.normalises_output, self.multiplier = spec.post is not None, spec.multiplier

    def forward(self, x: Tensor, *context: object) -> Tensor:
        out = self.post(self.block(self.pre(x), *context))
        return x + (out if self.multiplier == 1.0 else out * self.multiplier)


@dataclass(frozen=True)
class PostNorm(Placement):
    """norm(x + block(x)), as in the original transformer (Vaswani et al. 2017, section 3.1)."""

    block: Block
    norm: Norm

    placement = "post"
    formula = "norm(x + f(x))"

    def build(self, dim: int) -> nn.Module:
        return _PostNorm(self, dim)


class _PostNorm(ResidualBranch):
    normalises_output = False  # the norm comes after the sum

    def __init__(self, spec: PostNorm, dim: int) -> None:
        super().__init__()
        self.block = spec.block.build(dim)
        self.norm = spec.norm.build(dim)

    def forward(self, x: Tensor, *context: object) -> Tensor:
        return self.norm(x + self.block(x, *context))


def pre(norm: Norm, block: Block) -> Branch:
    """x + block(norm(x))"""
    return Branch(block, pre=norm)


def olmo(norm: Norm, block: Block) -> Branch:
    """x + norm(block(x))  (OLMo 2, section 3.1)"""
    return Branch(block, post=norm)


def sandwich(norm: Norm, block: Block) -> Branch:
    """x + norm(block(norm(x))), with two equal norm specs  (Gemma 3)"""
    return Branch(block, pre=norm, post=norm)


def post(norm: Norm, block: Block) -> PostNorm:
    """norm(x + block(x))  (the original transformer)"""
    return PostNorm(block, norm)


PLACEMENTS: dict[str, Callable[[Norm, Block], Placement]] = {
    "pre": pre,
    "olmo": olmo,
    "sandwich": sandwich,
    "post": post,
}


@dataclass(frozen=True)
class Layer(Composite):
    """Attention, then feed-forward, or only one of the two (Nemotron-H). The branch `inputs` follows, if the model has
    per-layer inputs (zoo.blocks.per_layer). The `output_scale` comes last (Gemma 4)."""

    attn: Placement | None
    ffn: Placement | None
    inputs: Placement | None = None
    output_scale: LayerScale | None = None

    def check(self) -> None:
        self.require(bool(self.attn or self.ffn), "a layer needs attn, ffn, or both")
        held = type(self.attn.block).__name__ if self.attn else ""
        is_mixer = not self.attn or isinstance(self.attn.block, Mixer)
        self.require(is_mixer, f"attn must hold a mixer such as GQA, not {held}")
        mixers = [type(part).__name__ for part in self.ffn.walk() if isinstance(part, Mixer)] if self.ffn else []
        self.require(not mixers, f"ffn must hold no mixer, not {', '.join(mixers)}: it is not given a cache")
        is_input = not self.inputs or isinstance(self.inputs.block, LayerInput)
        self.require(is_input, "inputs must hold a LayerInput")
        streams = {branch.stream_spec for _, branch in self.branches()}
        self.require(len(streams) == 1, "all branches of a layer must have the same residual streams")
        kinds = {type(part) for branch in (self.attn, self.ffn) if branch for part in branch.walk()}
        self.require(not any(issubclass(kind, LayerInput) for kind in kinds), "a LayerInput belongs only in inputs")

    def build(self, dim: int) -> nn.Module:
        return _Layer(self, dim)

    def branches(self) -> Iterator[tuple[str, Placement]]:
        """Returns (role, branch) for each branch that the layer has. Roles are "attn", "ffn" and "inputs"."""
        branches = ("attn", self.attn), ("ffn", self.ffn), ("inputs", self.inputs)
        return ((role, branch) for role, branch in branches if branch)

    @property
    def mixer(self) -> Mixer | None:
        """The block in which tokens exchange information, such as attention; None if the layer has none."""
        if self.attn is None:
            return None
        assert isinstance(self.attn.block, Mixer)
        return self.attn.block

    @property
    def feed_forward(self) -> Block | None:
        """The block that processes each token separately; None if the layer has none."""
        return self.ffn.block if self.ffn else None

    @property
    def mixture(self) -> MoE | None:
        """The mixture of experts inside the feed-forward, at any depth; None in a dense layer."""
        parts = self.ffn.walk() if self.ffn else ()
        return next((part for part in parts if isinstance(part, MoE)), None)

    @property
    def dense_width(self) -> int | None:
        """The hidden width of a feed-forward without experts; None for any other layer."""
        block = self.feed_forward
        return block.width if isinstance(block, FeedForward) and not self.mixture else None

    def with_width(self, width: int) -> Self:
        """Returns this layer with another hidden width of the feed-forward."""
        assert self.ffn is not None
        assert isinstance(self.ffn.block, FeedForward)
        return replace(self, ffn=self.ffn.with_block(self.ffn.block.with_width(width)))

    @property
    def position_encoding(self) -> Position | None:
        """The position encoding of the mixer's queries and keys; None if there is none."""
        parts = self.attn.walk() if self.attn else ()
        return next((part for part in parts if isinstance(part, Position)), None)

    @property
    def input_width(self) -> int | None:
        """The width of the layer's own input; None if the layer has no such input."""
        block = self.inputs.block if self.inputs else None
        return block.width if isinstance(block, LayerInput) else None

    @property
    def stream_spec(self) -> Spec | None:
        """The spec of the residual streams; None if there is a single stream."""
        return next(branch.stream_spec for _, branch in self.branches())

    @property
    def reads_tokens(self) -> bool:
        """Whether this layer's router reads the token ids."""
        return self.mixture is not None and self.mixture.router.reads_tokens

    def cache_spec(self) -> CacheSpec:
        """Returns the contents of this layer's cache."""
        return self.mixer.cache_spec() if self.mixer else CacheSpec()

    def hands_on(self) -> tuple[Hashable, ...]:
        """Returns the keys of the tensors that this layer gives to later layers."""
        return self.mixer.hands_on() if self.mixer else ()

    def takes(self) -> Mapping[Hashable, str]:
        """Returns key -> description for each tensor that this layer reads from earlier layers."""
        return self.mixer.takes() if self.mixer else {}

    def tables(self) -> tuple[tuple[Spec, int], ...]:
        """Returns (spec, width) for each position table that this layer looks up."""
        return self.mixer.tables() if self.mixer else ()

    def facts(self) -> tuple[Fact, ...]:
        inputs = Fact("inputs", phrase="an input of its own for each layer", noun="per-layer inputs")
        scale = Fact("output_scale", phrase="layer outputs scaled by a learned scalar", noun="output scale")
        return self.in_use(*super().facts(), inputs, scale)

    def describe(self) -> str:
        parts = [branch.describe() for _, branch in self.branches()]
        return "; ".join([*parts, self.output_scale.describe()] if self.output_scale else parts)


class LayerOutput(NamedTuple):
    """The output x (b, t, dim) of a layer, the outputs of its routers, and its tensors for later layers by key.
    `routing` and `handed_on` are None if the context does not ask for them."""

    x: Tensor
    routing: list[RouterOutput] | None
    handed_on: dict[Hashable, Any] | None


def run_layer(layer: nn.Module, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> LayerOutput:
    """Runs a layer on x (b, t, dim), in eager or compiled code, with or without recorded routing.

    Each call creates and returns its own records. If all layers appended to one list, compiled code would be specific
    to the length of the list, and a layer that is recomputed for the backward pass would append twice.
    """
    if ctx.routing is not None or ctx.handed_on is not None:
        ctx = replace(ctx, routing=None if ctx.routing is None else [], handed_on=None if ctx.handed_on is None else {})
    return LayerOutput(layer(x, ctx, cache), ctx.routing, ctx.handed_on)


class _Layer(nn.Module):
    def __init__(self, spec: Layer, dim: int) -> None:
        super().__init__()
        self.attn = spec.attn.build(dim) if spec.attn else None
        self.ffn = spec.ffn.build(dim) if spec.ffn else None
        self.inputs = spec.inputs.build(dim) if spec.inputs else None
        self.output_scale = spec.output_scale.build(dim) if spec.output_scale else None

    def forward(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> Tensor:
        """(b, t, dim) -> (b, t, dim)"""
        if self.attn is not None:
            x = self.attn(x, ctx, cache)
        if self.ffn is not None:
            x = self.ffn(x, ctx)
        if self.inputs is not None:
            x = self.inputs(x, ctx)
        return x if self.output_scale is None else self.output_scale(x)
