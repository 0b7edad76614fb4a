"""Attention over chosen keys beside attention over all, measured: one layer without its projections, taking turns.

full: latent attention over every stored token, as in DeepSeek-V3. sparse: the indexer scores the stored tokens, the k
best are gathered and attended over, as in DeepSeek-V3.2. Both have the same weights, queries and cache, and run
compiled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.measure.blocks import DECODE, block_context, build_block, time_columns
from benchmarks.measure.devices import CPU
from benchmarks.measure.runners import TOLERANCE
from benchmarks.measure.timing import Samples, Task, measure
from benchmarks.output.progress import progress
from zoo.blocks.mla import MLA
from zoo.blocks.sparse_mla import SparseMLA
from zoo.core.cache import Cache
from zoo.core.ops.attention import attention
from zoo.core.ops.indexing import choose_keys, sees
from zoo.core.ops.linear import per_head
from zoo.core.ops.sparse_attention import sparse_attention
from zoo.costs import linear_flops
from zoo.model.compile import compile_function
from zoo.units import dtype_name

FULL, SPARSE = "full", "sparse"
VARIANTS = (FULL, SPARSE)
LONGEST = 2**24  # tokens: where the sparse form is not cheaper before, it is never


@dataclass(frozen=True)
class SparseConfig:
    """Settings of the measurement. `contexts`: tokens that the last one sees, itself included. `phases`: of DECODE, one
    token after the others, and PREFILL, all of them at once."""

    contexts: Sequence[int]
    phases: Sequence[str] = (DECODE,)
    dtype: torch.dtype = torch.float32
    repeat: int = 5
    seed: int = 0

    def new(self, phase: str, context: int) -> int:
        """Tokens of a pass."""
        return 1 if phase == DECODE else context


def attention_flops(spec: SparseMLA, dim: int, past: int, new: int) -> dict[str, int]:
    """Variant -> FLOPs of attention without its projections: scores and weighted values, and the indexer's scores."""
    full = MLA(**{field.name: getattr(spec, field.name) for field in fields(MLA)})
    parts, indexer = spec.flop_breakdown(dim, past, new), spec.indexer
    assert spec.q_rank is not None
    projections = ((spec.q_rank, indexer.heads * indexer.head_dim), (dim, indexer.head_dim), (dim, indexer.heads))
    return {
        FULL: full.flop_breakdown(dim, past, new)["scores"],
        SPARSE: parts["scores"] + parts["indexer"] - sum(linear_flops(new, *widths) for widths in projections),
    }


def crossover(spec: SparseMLA, dim: int) -> int | None:
    """From how many stored tokens on the sparse form decodes with fewer FLOPs; None: from none."""

    def is_cheaper(context: int) -> bool:
        flops = attention_flops(spec, dim, context - 1, 1)
        return flops[SPARSE] < flops[FULL]

    low, high = spec.indexer.k, LONGEST
    if not is_cheaper(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_cheaper(middle) else (middle, high)
    return high


def run(spec: SparseMLA, dim: int, config: SparseConfig, differences: dict[str, float], samples: Samples) -> None:
    """Fill `samples` by (phase, context in digits, variant). `differences`, by phase and context: the largest of the
    last token's output from attention over all tokens under the mask of the chosen, as a share of the largest."""
    module: Any = build_block(spec, dim, config.dtype, config.seed)
    for phase in config.phases:
        for context in config.contexts:
            with torch.inference_mode(), progress(f"measuring {phase} at {context:,} tokens") as bar:
                steps, difference = _steps(module, spec, dim, context, config.new(phase, context), config)
                differences[f"{phase} {context}"] = difference
                tasks = [Task.ready((phase, str(context), variant), step) for variant, step in steps.items()]
                measure(tasks, samples, repetitions=config.repeat, tick=bar.tick, expect=bar.expect)


def _steps(
    module: Any, spec: SparseMLA, dim: int, context: int, new: int, config: SparseConfig
) -> tuple[dict[str, Callable[[], Tensor]], float]:
    """Variant -> attention of `new` tokens, the last of `context`, and the difference of `run`. The others' latents and
    index keys are drawn at random, as those of random activations are."""
    generator = torch.Generator().manual_seed(config.seed)
    cache = Cache([spec.cache_spec()], 1, context, config.dtype, CPU)
    for stream in cache.layers[0].streams:
        stream.normal_(generator=generator)
    x = torch.randn(1, new, dim, generator=generator).to(config.dtype)
    ctx = block_context(spec, cache, context - new, new)
    down, norm, up = module.q
    q_latent = norm(down(x))
    parts = module.split_queries(up(q_latent), ctx)
    latent, keys, mask = cache.layers[0].append(ctx, module.compress(x, ctx), module.indexer.keys(x, ctx))
    index = module.indexer(x, q_latent, ctx, keys)
    if new == 1:  # the up-projections are folded into the queries; what is left is attention over latents
        k_up = module.kv_up.weight.unflatten(0, (spec.heads, -1))[:, : spec.nope_dim]
        parts = (torch.cat([per_head(parts[0], k_up.transpose(1, 2)), parts[1]], dim=-1),)

    def full(*q: Tensor, mask: Tensor | None = mask) -> Tensor:
        if new > 1:
            return cast(Tensor, module.attend(*q, latent, mask))
        return attention(q[0], latent, latent, mask, module.scale)[..., : spec.kv_rank]

    def sparse(*q: Tensor) -> Tensor:
        chosen = choose_keys(index, context - new, mask=mask)
        if new > 1:
            return cast(Tensor, module.attend_to_chosen(*q, latent, mask, chosen))
        return sparse_attention(q[0], latent, chosen, mask, module.scale, spec.kv_rank)

    compiled = {variant: compile_function(each, dynamic=False) for variant, each in ((FULL, full), (SPARSE, sparse))}
    steps: dict[str, Callable[[], Tensor]] = {variant: partial(each, *parts) for variant, each in compiled.items()}
    last = sees(choose_keys(index, context - new)[:, -1:], context)[0, 0]
    expected = full(*(each[:, :, -1:] for each in parts), mask=last).float()
    found = steps[SPARSE]()[:, :, -1:].float()
    return steps, float((found - expected).abs().max() / expected.abs().max())


def rows(
    spec: SparseMLA, dim: int, config: SparseConfig, differences: dict[str, float], samples: Samples
) -> list[dict[str, Any]]:
    """One row for each phase, context and variant that was measured."""
    made: list[dict[str, Any]] = []
    for phase, context in ((phase, context) for phase in config.phases for context in config.contexts):
        new = config.new(phase, context)
        flops = attention_flops(spec, dim, context - new, new)
        seconds = {variant: samples.get((phase, str(context), variant), []) for variant in VARIANTS}
        times = {variant: time_columns("attention", taken) for variant, taken in seconds.items() if taken}
        for variant, columns in times.items():
            base = times.get(FULL, {}).get("attention_s")
            gain = base / columns["attention_s"] if base else None
            predicted = flops[FULL] / flops[SPARSE] if variant == SPARSE else None
            made.append(
                {
                    "table": "sparse",
                    "phase": phase,
                    "variant": variant,
                    "dim": dim,
                    "heads": spec.heads,
                    "index_heads": spec.indexer.heads,
                    "k": spec.indexer.k,
                    "dtype": dtype_name(config.dtype),
                    "threads": torch.get_num_threads(),
                    "context": context,
                    "flops": flops[variant],
                    "crossover_tokens": crossover(spec, dim),
                    "difference": differences.get(f"{phase} {context}"),
                    "bound": TOLERANCE[config.dtype],
                    **columns,
                    "gain": gain,
                    "predicted_gain": predicted,
                    "reached": gain / predicted if gain and predicted else None,
                }
            )
    return made


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each output of the sparse form that is not that of attention under the mask of its chosen tokens."""
    return [
        f"sparse attention in {row['phase']} at {row['context']} tokens differs from attention under its mask by "
        f"{row['difference']:.1e}, above {row['bound']:.0e}"
        for row in rows
        if row["variant"] == SPARSE and not row["difference"] <= row["bound"]  # "not <=": a NaN is a failure
    ]
