"""Sparse attention over the keys that an indexer chooses, timed against full attention over all keys.

full: latent attention over every cached token, as in DeepSeek-V3. sparse: the indexer scores the cached tokens, and
attention runs over the k best, as in DeepSeek-V3.2. Both are compiled and have the same queries and cache. Projections
are not timed.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.measure.blocks import block_context, time_columns
from benchmarks.measure.environment import CPU
from benchmarks.measure.variants import Comparison, Prepared, VariantsConfig, ratio
from zoo.blocks.mla import MLA
from zoo.blocks.sparse_mla import SparseMLA
from zoo.cli.tables import Row
from zoo.core import inductor
from zoo.core.cache import Cache
from zoo.core.ops.attention import attention
from zoo.core.ops.indexing import choose_keys, sees, sparse_attention
from zoo.core.ops.latent_attention import sparse_latent_attention
from zoo.core.ops.linear import per_head
from zoo.costs import linear_flops
from zoo.errors import UsageError

FULL, SPARSE = "full", "sparse"
LONGEST = 2**24  # tokens: the longest context that `crossover` tries


def attention_flops(spec: SparseMLA, dim: int, past: int, new: int) -> dict[str, int]:
    """Returns {variant: FLOPs without projections}: scores, weighted values, and the indexer's scores."""
    full = MLA(**{field.name: getattr(spec, field.name) for field in fields(MLA)})
    parts, indexer = spec.flop_breakdown(dim, past, new), spec.indexer
    assert spec.q_rank is not None
    projections = ((spec.q_rank, indexer.heads * indexer.head_dim), (dim, indexer.head_dim), (dim, indexer.heads))
    return {
        FULL: full.flop_breakdown(dim, past, new)["scores"],
        SPARSE: parts["scores"] + parts["indexer"] - sum(linear_flops(new, *widths) for widths in projections),
    }


def crossover(spec: SparseMLA, dim: int) -> int | None:
    """Returns the fewest cached tokens at which sparse attention decodes with fewer FLOPs than full attention; None if
    above LONGEST."""

    def is_cheaper(context: int) -> bool:
        flops = attention_flops(spec, dim, context - 1, 1)
        return flops[SPARSE] < flops[FULL]

    found = bisect_left(range(LONGEST + 1), True, lo=spec.indexer.k + 1, key=is_cheaper)
    return found if found <= LONGEST else None


class SparseVariants(Comparison):
    """The full and sparse variants of one layer's attention.

    The output of sparse attention must equal that of full attention under a mask that hides every token that the
    indexer did not choose. Raises UsageError for a context so short that the indexer chooses every token.
    """

    MODEL, FEATURE = "deepseek-v3.2", "sparse attention"
    CONTEXTS = (8192, 32_768)
    VARIANTS = (FULL, SPARSE)
    REFERENCE, EXPECTED = FULL, "attention under its mask"

    def __init__(self, spec: SparseMLA, dim: int, config: VariantsConfig) -> None:
        super().__init__(spec, dim, config)
        if short := [tokens for tokens in config.contexts if tokens <= spec.indexer.k]:
            raise UsageError(f"--context {short[0]}: give more than the k={spec.indexer.k} tokens that are chosen")

    @staticmethod
    def measures(mixer: object) -> bool:
        """Whether the mixer is sparse attention with its own indexer."""
        return isinstance(mixer, SparseMLA) and not mixer.shares_choice

    def row(
        self, variant: str, phase: str, context: int, seconds: Sequence[float] = (), reference_s: float | None = None
    ) -> Row:
        """Returns FLOPs and times of a pass, its speedup over full attention (`gain`), and its share of the predicted
        gain."""
        spec, new, times = self.spec, self.config.new(phase, context), time_columns("attention", seconds)
        flops = attention_flops(spec, self.dim, context - new, new)
        gain = ratio(reference_s, times["attention_s"])
        predicted = flops[FULL] / flops[SPARSE] if variant == SPARSE else None
        return {
            "table": "sparse",
            "phase": phase,
            "variant": variant,
            "dim": self.dim,
            "heads": spec.heads,
            "index_heads": spec.indexer.heads,
            "k": spec.indexer.k,
            **self.settings(),
            "context": context,
            "flops": flops[variant],
            "crossover_tokens": crossover(spec, self.dim),
            "difference": None,
            "bound": self.bound,
            **times,
            "gain": gain,
            "predicted_gain": predicted,
            "reached": ratio(gain, predicted),
        }

    def prepare(self, module: Any, phase: str, context: int) -> dict[str, Prepared]:
        """Prepares the attention of a pass's new tokens over a cache of random latents and index keys.

        `context` counts the new and the cached tokens. Only the outputs of the last token are compared.
        """
        spec, config, new = self.spec, self.config, self.config.new(phase, context)
        generator = torch.Generator().manual_seed(config.seed)
        cache = Cache([spec.cache_spec()], 1, context, config.dtype, CPU)
        for stream in cache.layers[0].streams:
            stream.normal_(generator=generator)
        x = torch.randn(1, new, self.dim, generator=generator).to(config.dtype)
        ctx = block_context(spec, cache, context - new, new)
        down, norm, up = module.q
        q_latent = norm(down(x))
        parts = module.split_queries(up(q_latent), ctx)
        latent, keys, mask = cache.layers[0].append(ctx, module.compress(x, ctx), module.indexer.keys(x, ctx))
        index = module.indexer(x, q_latent, ctx, keys)
        kv_up = module.kv_up.weight.unflatten(0, (spec.heads, -1))
        if new == 1:  # the up-projections are folded into the queries; what is left is attention over latents
            k_up = kv_up[:, : spec.nope_dim]
            parts = (torch.cat([per_head(parts[0], k_up.transpose(1, 2)), parts[1]], dim=-1),)

        def full(*q: Tensor, mask: Tensor | None = mask) -> Tensor:
            if new > 1:
                return cast(Tensor, module.attend(*q, latent, mask))
            return attention(q[0], latent, latent, mask, module.scale)[..., : spec.kv_rank]

        def sparse(*q: Tensor) -> Tensor:
            chosen = choose_keys(index, context - new, mask=mask)
            if new > 1:
                q_nope, q_rope = q
                under = partial(module.attend, q_nope, q_rope, latent)
                return sparse_latent_attention(q_nope, q_rope, latent, kv_up, chosen, mask, module.scale, under)
            return sparse_attention(q[0], latent, chosen, mask, module.scale, spec.kv_rank)

        compiled = {
            variant: inductor.compiled(each, dynamic=False) for variant, each in ((FULL, full), (SPARSE, sparse))
        }
        last = sees(choose_keys(index, context - new)[:, -1:], context)[0, 0]
        expected = full(*(each[:, :, -1:] for each in parts), mask=last).float()
        output = compiled[SPARSE](*parts)[:, :, -1:].float()
        difference = float((output - expected).abs().max() / expected.abs().max())
        return {name: Prepared(partial(each, *parts), {"difference": difference}) for name, each in compiled.items()}
