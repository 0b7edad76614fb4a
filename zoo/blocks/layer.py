"""A layer: two branches off the residual stream, and where their norms stand."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from zoo.blocks.norms import RMSNorm
from zoo.costs import Breakdown, CacheSpec, sum_breakdowns
from zoo.registry import Block, Mixer, Spec


class Placement(Block, abstract=True):
    """A block beside the residual stream. Its cost is the block's and the norms'."""

    block: Block

    @property
    @abstractmethod
    def placement(self) -> str:
        """The word for where the norms stand."""

    @property
    @abstractmethod
    def formula(self) -> str:
        """What becomes of x, with f for the block."""

    def norms(self) -> tuple[RMSNorm, ...]:
        """The norms of this placement, in the order they are applied."""
        return tuple(child for name, child in self.children() if isinstance(child, RMSNorm) and name != "block")

    def params(self, dim: int) -> int:
        return self.block.params(dim) + sum(norm.params(dim) for norm in self.norms())

    def active_params(self, dim: int) -> int:
        return self.block.active_params(dim) + sum(norm.params(dim) for norm in self.norms())

    def read_params(self, dim: int, tokens: int) -> float:
        return self.block.read_params(dim, tokens) + sum(norm.params(dim) for norm in self.norms())

    def param_breakdown(self, dim: int) -> Breakdown:
        return sum_breakdowns((1, part.param_breakdown(dim)) for part in (self.block, *self.norms()))

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return self.block.flops(dim, past, new, causal)

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        return self.block.flop_breakdown(dim, past, new, causal)


@dataclass(frozen=True)
class Branch(Placement):
    """x + post(block(pre(x))), either norm optional: pre-norm, OLMo 2's placement and Gemma 3's sandwich."""

    block: Block
    pre: RMSNorm | None = None
    post: RMSNorm | None = None

    def build(self, dim: int) -> nn.Module:
        return _Branch(self, dim)

    @property
    def placement(self) -> str:
        """pre, olmo, sandwich, or none."""
        return {(True, False): "pre", (False, True): "olmo", (True, True): "sandwich", (False, False): "none"}[
            self.pre is not None, self.post is not None
        ]

    @property
    def formula(self) -> str:
        inside = "f(norm(x))" if self.pre else "f(x)"
        return f"x + norm({inside})" if self.post else f"x + {inside}"


class _Branch(nn.Module):
    def __init__(self, spec: Branch, dim: int) -> None:
        super().__init__()
        self.pre = spec.pre.build(dim) if spec.pre else nn.Identity()
        self.block = spec.block.build(dim)
        self.post = spec.post.build(dim) if spec.post else nn.Identity()

    def forward(self, x: Tensor, *context: object) -> Tensor:
        return x + self.post(self.block(self.pre(x), *context))


@dataclass(frozen=True)
class PostNorm(Placement):
    """norm(x + block(x)), as in the original transformer (Vaswani et al. 2017, section 3.1)."""

    block: Block
    norm: RMSNorm

    def build(self, dim: int) -> nn.Module:
        return _PostNorm(self, dim)

    @property
    def placement(self) -> str:
        """post"""
        return "post"

    @property
    def formula(self) -> str:
        return "norm(x + f(x))"


class _PostNorm(nn.Module):
    def __init__(self, spec: PostNorm, dim: int) -> None:
        super().__init__()
        self.block = spec.block.build(dim)
        self.norm = spec.norm.build(dim)

    def forward(self, x: Tensor, *context: object) -> Tensor:
        return self.norm(x + self.block(x, *context))


def pre(norm: RMSNorm, block: Block) -> Branch:
    """x + block(norm(x))"""
    return Branch(block, pre=norm)


def olmo(norm: RMSNorm, block: Block) -> Branch:
    """x + norm(block(x))  (OLMo 2, section 3.1)"""
    return Branch(block, post=norm)


def sandwich(norm: RMSNorm, block: Block) -> Branch:
    """x + norm(block(norm(x))), two norms of one kind  (Gemma 3)"""
    return Branch(block, pre=norm, post=norm)


def post(norm: RMSNorm, block: Block) -> PostNorm:
    """norm(x + block(x))  (the original transformer)"""
    return PostNorm(block, norm)


PLACEMENTS = {"pre": pre, "olmo": olmo, "sandwich": sandwich, "post": post}


@dataclass(frozen=True)
class Layer(Block):
    """Attention, then feed-forward."""

    attn: Branch | PostNorm
    ffn: Branch | PostNorm

    def check(self) -> None:
        held = type(self.attn.block).__name__
        self.require(isinstance(self.attn.block, Mixer), f"attn must hold a mixer such as GQA, not {held}")
        mixers = [type(part).__name__ for part in self.ffn.walk() if isinstance(part, Mixer)]
        self.require(not mixers, f"ffn must hold no mixer, not {', '.join(mixers)}: it is not handed a slot")

    def build(self, dim: int) -> nn.Module:
        return _Layer(self, dim)

    def params(self, dim: int) -> int:
        return self.attn.params(dim) + self.ffn.params(dim)

    def active_params(self, dim: int) -> int:
        return self.attn.active_params(dim) + self.ffn.active_params(dim)

    def read_params(self, dim: int, tokens: int) -> float:
        return self.attn.read_params(dim, tokens) + self.ffn.read_params(dim, tokens)

    def param_breakdown(self, dim: int) -> Breakdown:
        return sum_breakdowns((1, branch.param_breakdown(dim)) for branch in (self.attn, self.ffn))

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return self.attn.flops(dim, past, new, causal) + self.ffn.flops(dim, past, new, causal)

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        return sum_breakdowns((1, branch.flop_breakdown(dim, past, new, causal)) for branch in (self.attn, self.ffn))

    @property
    def mixer(self) -> Mixer:
        """The block in which tokens see each other."""
        assert isinstance(self.attn.block, Mixer)
        return self.attn.block

    def cache_spec(self) -> CacheSpec:
        """What this layer keeps of each token."""
        return self.mixer.cache_spec()

    def rotary(self) -> tuple[tuple[Spec, int], ...]:
        """The position tables this layer looks up."""
        return self.mixer.rotary()


class _Layer(nn.Module):
    def __init__(self, spec: Layer, dim: int) -> None:
        super().__init__()
        self.attn = spec.attn.build(dim)
        self.ffn = spec.ffn.build(dim)

    def forward(self, x: Tensor, *context: object) -> Tensor:
        """(b, t, dim) -> (b, t, dim); `context` is the step and the layer's slot."""
        return self.ffn(self.attn(x, *context))
