"""Three variants of decoding one token with latent attention (MLA).

absorbed: the zoo's own `MLA`. Attention runs over cached latents; the up-projections are folded into query and output.
latent: latents are cached, and expanded to keys and values of all heads at each step, as transformers does.
expanded: keys and values of all heads are cached. They are expanded once, when their token arrives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure.blocks import DECODE, block_context, time_columns
from benchmarks.measure.environment import CPU
from benchmarks.measure.variants import Comparison, Prepared, VariantsConfig, ratio
from zoo.blocks.mla import MLA
from zoo.cli.tables import Row
from zoo.core.cache import Cache
from zoo.core.devices import free_memory
from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.core.ops.attention import attention
from zoo.costs import Breakdown, CacheSpec, linear_flops
from zoo.units import format_bytes

EXPANDED, LATENT, ABSORBED = "expanded", "latent", "absorbed"


@dataclass(frozen=True)
class _Latent(MLA):
    """MLA that caches latents and expands them again at each step."""

    def absorbs(self, past: int, new: int) -> bool:
        return False


@dataclass(frozen=True)
class _Expanded(_Latent):
    """MLA that caches the keys and values of all heads."""

    def build(self, dim: int) -> nn.Module:
        return ExpandedAttention(super().build(dim))

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        parts = super().flop_breakdown(dim, past, new, causal)
        again = linear_flops(past, self.kv_rank, self.heads * (self.nope_dim + self.v_dim))
        return {**parts, "projections": parts["projections"] - again}

    def cache_spec(self) -> CacheSpec:
        keys, values = (self.heads, self.nope_dim + self.rope_dim), (self.heads, self.v_dim)
        return CacheSpec(per_token=(("k", keys), ("v", values)))


class ExpandedAttention(nn.Module):
    """MLA over a cache of expanded keys and values. `mla`: the module of an MLA spec, whose weights it uses."""

    def __init__(self, mla: Any) -> None:
        super().__init__()
        self.mla = mla

    def forward(self, x: Tensor, ctx: ForwardContext, cache: LayerCache) -> Tensor:
        """Returns the attention output for x: (b, t, dim) -> (b, t, dim)."""
        q_nope, q_rope, latent = self.mla.project(x, ctx)
        k, v, mask = cache.append(ctx, *self.mla.expand(latent))
        out = attention(torch.cat([q_nope, q_rope], dim=-1), k, v, mask, self.mla.scale)
        return self.mla.o(out.transpose(1, 2).flatten(2))


def variants(spec: MLA) -> dict[str, MLA]:
    """Returns {variant: a spec with the same fields that decodes in this variant}, by descending cache size."""
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return {EXPANDED: _Expanded(**values), LATENT: _Latent(**values), ABSORBED: MLA(**values)}


def modules(spec: MLA, source: nn.Module, dim: int) -> dict[str, nn.Module]:
    """Returns {variant: a module that shares the weights of `source`, the module built from `spec`}."""
    with torch.device("meta"):
        latent = variants(spec)[LATENT].build(dim).eval()
    latent.load_state_dict(source.state_dict(), assign=True)
    return {EXPANDED: ExpandedAttention(latent).eval(), LATENT: latent, ABSORBED: source}


def scratch_elements(variant: str, spec: MLA, context: int) -> int:
    """Returns the elements of the large temporary tensors of a decode step at `context` tokens.

    They are the scores and their softmax. The latent variant adds the expanded keys and values, before and after the
    keys are joined with their rotary part.
    """
    scores = 3 * spec.heads * context
    joined = spec.nope_dim + spec.v_dim + spec.nope_dim + spec.rope_dim
    return scores + (context * spec.heads * joined if variant == LATENT else 0)


@torch.no_grad()
def fill_cache(variant: str, module: Any, streams: list[Tensor], latent: Tensor, chunk: int = 1024) -> None:
    """Writes `latent` (1, 1, past, kv_rank + rope_dim) into the streams of a layer cache, as its first `past` tokens.

    If the variant caches keys and values, `module` expands the latents, `chunk` tokens at a time.
    """
    for start in range(0, latent.shape[2], chunk):
        part = latent[:, :, start : start + chunk]
        kept = module.mla.expand(part) if variant == EXPANDED else (part,)
        for stream, tokens in zip(streams, kept, strict=True):
            stream[:, :, start : start + part.shape[2]] = tokens


class MLAVariants(Comparison):
    """The three variants of decoding with MLA. Outputs must be equal, and caches as large as the formula predicts."""

    MODEL, FEATURE = "deepseek-v3", "MLA"
    CONTEXTS = (1024, 4096, 32_768)
    VARIANTS = (EXPANDED, LATENT, ABSORBED)
    REFERENCE = EXPECTED = ABSORBED

    def __init__(self, spec: MLA, dim: int, config: VariantsConfig) -> None:
        super().__init__(spec, dim, config)
        self.specs = variants(spec)

    @staticmethod
    def measures(mixer: object) -> bool:
        """Whether the mixer is latent attention."""
        return isinstance(mixer, MLA)

    def kv_bytes(self, variant: str, context: int) -> int:
        """Returns the cache bytes of one layer and one sequence."""
        return context * self.specs[variant].cache_spec().elements() * self.config.dtype.itemsize

    def row(
        self, variant: str, phase: str, context: int, seconds: Sequence[float] = (), reference_s: float | None = None
    ) -> Row:
        """Returns a row with the costs and the times of one decoded token."""
        spec, times = self.specs[variant], time_columns(DECODE, seconds)
        return {
            "table": "mla",
            "variant": variant,
            "dim": self.dim,
            "heads": spec.heads,
            "params": spec.params(self.dim),
            **self.settings(),
            "context": context,
            "elements_per_token": spec.cache_spec().elements(),
            "kv_bytes_per_token": self.kv_bytes(variant, 1),
            "kv_bytes": self.kv_bytes(variant, context),
            "allocated_bytes": None,
            "flops": spec.flops(self.dim, context - 1, 1),
            "difference": None,
            "bound": self.bound,
            "too_large": None,
            **times,
            "against_absorbed": ratio(times["decode_s"], reference_s),
        }

    def prepare(self, module: nn.Module, phase: str, context: int) -> dict[str, Prepared]:
        """Prepares the decoding of one token after `context` - 1 random latents, and compares the variants' outputs."""
        config, spec = self.config, self.spec
        refused = self.too_large(context, free_memory(CPU))
        generator = torch.Generator().manual_seed(config.seed)
        latent = torch.randn(1, 1, context - 1, spec.kv_rank + spec.rope_dim, generator=generator).to(config.dtype)
        x = torch.randn(1, 1, self.dim, generator=generator).to(config.dtype)
        built, expected = modules(spec, module, self.dim), None
        found = {variant: Prepared(None, {"too_large": reason}) for variant, reason in refused.items()}
        for variant in (each for each in reversed(self.VARIANTS) if each not in refused):
            each = self.specs[variant]
            cache = Cache([each.cache_spec()], 1, context, config.dtype, CPU)
            fill_cache(variant, built[variant], cache.layers[0].streams, latent)
            step = partial(built[variant], x, block_context(each, cache, context - 1, 1), cache.layers[0])
            output = step().float()
            expected = output if variant == ABSORBED else expected
            difference = None if expected is None else float((output - expected).abs().max() / expected.abs().max())
            found[variant] = Prepared(step, {"allocated_bytes": cache.nbytes, "difference": difference})
        return {variant: found[variant] for variant in self.VARIANTS}

    def too_large(self, context: int, free: int | None) -> Mapping[str, str]:
        """Returns {variant: a text with the needed and the free memory} for the variants that do not fit.

        The caches of all variants that fit exist at the same time; the scratch memory of their steps does not.
        """
        refused, held, scratch = {}, 0, 0
        for variant in reversed(self.VARIANTS):
            kept = self.kv_bytes(variant, context)
            needs = scratch_elements(variant, self.spec, context) * self.config.dtype.itemsize
            largest = max(scratch, needs)
            needed = held + kept + largest
            if free is not None and needed > free:
                refused[variant] = f"needs {format_bytes(needed)}, {format_bytes(free)} free"
            else:
                held, scratch = held + kept, largest
        return refused
