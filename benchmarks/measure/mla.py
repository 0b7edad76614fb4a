"""Latent attention (MLA) decoded in three variants, measured: one token at each context, the variants taking turns.

absorbed: the zoo's own `MLA`. Latents are cached and attended over, the up-projections folded into query and output.
latent: latents are cached, and keys and values of all heads expanded from them at each step, as transformers does.
expanded: keys and values of all heads are cached, each expanded once, when its token comes.

All have the same weights and the same outputs; `failures` says where they differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure.blocks import block_context, build_block, time_columns
from benchmarks.measure.devices import CPU, require_memory
from benchmarks.measure.runners import TOLERANCE
from benchmarks.measure.timing import Samples, Task, measure
from benchmarks.output.progress import progress
from zoo.blocks.mla import MLA
from zoo.core.cache import Cache
from zoo.core.devices import free_memory
from zoo.core.forward_context import ForwardContext, LayerCache
from zoo.core.ops.attention import attention
from zoo.costs import Breakdown, CacheSpec, linear_flops
from zoo.units import dtype_name, format_bytes

EXPANDED, LATENT, ABSORBED = "expanded", "latent", "absorbed"


@dataclass(frozen=True)
class _Latent(MLA):
    """Latents are cached, and expanded again at each step."""

    def absorbs(self, past: int, new: int) -> bool:
        return False


@dataclass(frozen=True)
class _Expanded(_Latent):
    """Keys and values of all heads are cached."""

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
        """(b, t, dim) -> (b, t, dim)"""
        q_nope, q_rope, latent = self.mla.project(x, ctx)
        k, v, mask = cache.append(ctx, *self.mla.expand(latent))
        out = attention(torch.cat([q_nope, q_rope], dim=-1), k, v, mask, self.mla.scale)
        return self.mla.o(out.transpose(1, 2).flatten(2))


def variants(spec: MLA) -> dict[str, MLA]:
    """Variant -> a spec of equal fields that decodes in it, the costliest in memory first."""
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return {EXPANDED: _Expanded(**values), LATENT: _Latent(**values), ABSORBED: MLA(**values)}


def modules(spec: MLA, source: nn.Module, dim: int) -> dict[str, nn.Module]:
    """Variant -> a module with the weights of `source`, the module of `spec`; no weight is copied."""
    with torch.device("meta"):
        latent = variants(spec)[LATENT].build(dim).eval()
    latent.load_state_dict(source.state_dict(), assign=True)
    return {EXPANDED: ExpandedAttention(latent).eval(), LATENT: latent, ABSORBED: source}


def scratch_elements(variant: str, spec: MLA, context: int) -> int:
    """Elements of the large temporary tensors of a step at `context` tokens: scores, their softmax, and in the latent
    variant the expanded keys and values, before and after keys are joined with their rotary part."""
    scores = 3 * spec.heads * context
    joined = spec.nope_dim + spec.v_dim + spec.nope_dim + spec.rope_dim
    return scores + (context * spec.heads * joined if variant == LATENT else 0)


@torch.no_grad()
def fill_cache(variant: str, module: Any, streams: list[Tensor], latent: Tensor, chunk: int = 1024) -> None:
    """Write `latent` (1, 1, past, kv_rank + rope_dim) into the streams of a layer cache as its first `past` tokens,
    expanded by `module` where the variant caches keys and values, `chunk` tokens at a time."""
    for start in range(0, latent.shape[2], chunk):
        part = latent[:, :, start : start + chunk]
        kept = module.mla.expand(part) if variant == EXPANDED else (part,)
        for stream, tokens in zip(streams, kept, strict=True):
            stream[:, :, start : start + part.shape[2]] = tokens


@dataclass(frozen=True)
class MLAConfig:
    """Settings of the measurement. `contexts`: tokens that the decoded one sees, itself included."""

    contexts: Sequence[int]
    dtype: torch.dtype = torch.float32
    repeat: int = 5
    seed: int = 0

    def kv_bytes(self, spec: MLA, context: int) -> int:
        """Cache bytes of one layer and one sequence."""
        return context * spec.cache_spec().elements() * self.dtype.itemsize


@dataclass(frozen=True)
class Outcome:
    """One variant at one context. `too_large`: why it was not run. Otherwise `allocated`: the bytes of its cache;
    `difference`: the largest one between its output and the absorbed variant's, as a share of the largest output."""

    variant: str
    context: int
    too_large: str | None = None
    allocated: int | None = None
    difference: float | None = None


def require_weight_memory(spec: MLA, dim: int, dtype: torch.dtype) -> None:
    """Raise NotAvailable where not even the weights fit into the free memory."""
    what, advice = "the weights of one layer's attention need", "--tiny measures it at toy widths"
    require_memory(spec.params(dim) * dtype.itemsize, CPU, what, lambda free: advice)


def run(spec: MLA, dim: int, config: MLAConfig, outcomes: list[Outcome], samples: Samples) -> None:
    """Fill `outcomes`, one for each variant and context, and `samples` by (variant, context in digits)."""
    built = modules(spec, build_block(spec, dim, config.dtype, config.seed), dim)
    for context in config.contexts:
        with torch.inference_mode(), progress(f"measuring at {context:,} tokens") as bar:
            refused = too_large(variants(spec), context, config, free_memory(CPU))
            outcomes += [Outcome(variant, context, reason) for variant, reason in refused.items()]
            turns = {variant: module for variant, module in built.items() if variant not in refused}
            tasks = _tasks(spec, dim, turns, context, config, outcomes)
            measure(tasks, samples, repetitions=config.repeat, tick=bar.tick, expect=bar.expect)


def too_large(specs: dict[str, MLA], context: int, config: MLAConfig, free: int | None) -> dict[str, str]:
    """Variant -> what it needs and what is free, for those that do not fit beside the ones that need less.

    The caches of all variants at a context exist at the same time; the scratch memory of their steps does not.
    """
    refused, held, scratch = {}, 0, 0
    for variant, spec in reversed(specs.items()):
        kept = config.kv_bytes(spec, context)
        largest = max(scratch, scratch_elements(variant, spec, context) * config.dtype.itemsize)
        needed = held + kept + largest
        if free is not None and needed > free:
            refused[variant] = f"needs {format_bytes(needed)}, {format_bytes(free)} free"
        else:
            held, scratch = held + kept, largest
    return refused


def _tasks(
    spec: MLA, dim: int, turns: dict[str, nn.Module], context: int, config: MLAConfig, outcomes: list[Outcome]
) -> list[Task]:
    """Decoding one token in each variant, after `context` - 1 tokens whose latents are drawn at random, as those of
    random activations are. Each has been run once and compared."""
    generator = torch.Generator().manual_seed(config.seed)
    latent = torch.randn(1, 1, context - 1, spec.kv_rank + spec.rope_dim, generator=generator).to(config.dtype)
    x = torch.randn(1, 1, dim, generator=generator).to(config.dtype)
    tasks: list[Task] = []
    expected = None
    for variant, module in reversed(turns.items()):  # absorbed first: the others are compared with it
        each = variants(spec)[variant]
        cache = Cache([each.cache_spec()], 1, context, config.dtype, CPU)
        fill_cache(variant, module, cache.layers[0].streams, latent)
        step = partial(module, x, block_context(each, cache, context - 1, 1), cache.layers[0])
        output = step().float()
        expected = output if variant == ABSORBED else expected
        difference = None if expected is None else float((output - expected).abs().max() / expected.abs().max())
        outcomes.append(Outcome(variant, context, allocated=cache.nbytes, difference=difference))
        tasks.append(Task.ready((variant, str(context)), step))
    return tasks[::-1]


def rows(spec: MLA, dim: int, config: MLAConfig, outcomes: Sequence[Outcome], samples: Samples) -> list[dict[str, Any]]:
    """One row for each variant and context that was measured or found too large, in the order of `variants`."""
    specs = variants(spec)
    found = {(each.context, each.variant): each for each in outcomes}
    order = [found[context, variant] for context in config.contexts for variant in specs if (context, variant) in found]
    made: list[dict[str, Any]] = []
    for outcome in order:
        spec, context = specs[outcome.variant], outcome.context
        seconds = samples.get((outcome.variant, str(context)), [])
        if not (seconds or outcome.too_large):
            continue
        made.append(
            {
                "table": "mla",
                "variant": outcome.variant,
                "dim": dim,
                "heads": spec.heads,
                "params": spec.params(dim),
                "dtype": dtype_name(config.dtype),
                "threads": torch.get_num_threads(),
                "context": context,
                "elements_per_token": spec.cache_spec().elements(),
                "kv_bytes_per_token": config.kv_bytes(spec, 1),
                "kv_bytes": config.kv_bytes(spec, context),
                "allocated_bytes": outcome.allocated,
                "flops": spec.flops(dim, context - 1, 1),
                "difference": outcome.difference,
                "bound": TOLERANCE[config.dtype],
                "too_large": outcome.too_large,
                **time_columns("decode", seconds),
            }
        )
    absorbed = {row["context"]: row["decode_s"] for row in made if row["variant"] == ABSORBED}
    for row in made:
        base = absorbed.get(row["context"])
        row["against_absorbed"] = row["decode_s"] / base if row["decode_s"] and base else None
    return made


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each allocation that is not the formula's, and each output that is not the absorbed variant's."""
    found = []
    for row in rows:
        where = f"{row['variant']} at {row['context']} tokens"
        if row["allocated_bytes"] not in (None, row["kv_bytes"]):
            found.append(f"{where} allocated {row['allocated_bytes']:,} bytes, the formula says {row['kv_bytes']:,}")
        # "not <=": a NaN is a failure.
        if row["difference"] is not None and not row["difference"] <= row["bound"]:
            found.append(f"{where} differs from absorbed by {row['difference']:.1e} of it, above {row['bound']:.0e}")
    return found
