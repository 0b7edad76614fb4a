"""Timing of each block outside a model: a prefill, and one decoded token at a context. The blocks take turns.

`block_list` is the one place that lists the measured blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measure.environment import CPU, require_memory
from benchmarks.measure.timing import Samples, Task, measure
from benchmarks.output.progress import progress
from zoo.blocks import (
    GLU,
    GQA,
    KDA,
    MLA,
    MLP,
    ClampedSwiGLU,
    CompressedAttention,
    Compressor,
    EntryIndexer,
    Gated,
    GatedDeltaNet,
    GeGLU,
    GroupedSigmoidTopK,
    GroupedSoftmaxTopK,
    HashTopK,
    Indexer,
    InputScaledTopK,
    LayerNorm,
    Mamba2,
    MoE,
    NoPE,
    ReLUSquared,
    RMSNorm,
    RoPE,
    ShortConv,
    SoftmaxTopK,
    SparseMLA,
    SqrtSoftplusTopK,
    SwiGLU,
)
from zoo.blocks.layer import PLACEMENTS
from zoo.core.cache import Cache, prepare_forward
from zoo.core.devices import allocating
from zoo.core.forward_context import ForwardContext
from zoo.costs import CacheSpec, whole
from zoo.errors import UsageError
from zoo.model.initialisation import initialise
from zoo.registry import Block, Mixer
from zoo.units import dtype_name

PREFILL, DECODE = "prefill", "decode"
HEAD_DIM, QUERIES_PER_KEY = 64, 4  # width of a head; query heads that share a key in GQA
WINDOW = 512  # tokens in a window or a chunk, and tokens that an indexer chooses
CONV = 4  # tokens that a short convolution sees
TOKEN_IDS = 2**15  # vocabulary of the router that chooses experts by token id
EXPERTS, ACTIVE_EXPERTS = 16, 4  # an expert has 1 / ACTIVE_EXPERTS of the dense width: equal active parameters


class BlockEntry(NamedTuple):
    """A block to measure. `label`: its name in tables. `group`: attention, feed-forward, norm or placement."""

    group: str
    label: str
    spec: Block


def block_list(dim: int) -> list[BlockEntry]:
    """Returns every block at width `dim`. Comparable blocks follow each other.

    Attention has dim / 64 heads of width 64. MLA has the proportions of DeepSeek-V2 (section 2.1.3). A feed-forward
    block has 4 x dim active hidden units, dense or in experts. Raises UsageError unless `dim` is a multiple of 256.
    """
    unit = HEAD_DIM * QUERIES_PER_KEY
    if dim < 1 or dim % unit:
        raise UsageError(f"--dim {dim} must be a multiple of {unit}, for {QUERIES_PER_KEY} heads of {HEAD_DIM} per key")
    ffn, norm = _feed_forward(dim), RMSNorm(1e-6)
    groups: dict[str, dict[str, Block]] = {
        "attention": _attention(dim),
        "feed-forward": ffn,
        "placement": {name: place(norm, ffn["SwiGLU"]) for name, place in PLACEMENTS.items()},
        # Norms with the rounding of released models, each named after the first model with this rounding. Norms are
        # last: they take microseconds, and directly after an MoE their times would include the release of its memory.
        "norm": {
            "RMSNorm, Llama": norm,
            "RMSNorm, OLMo": replace(norm, scale_in_fp32=True),
            "RMSNorm, Gemma": replace(norm, unit_offset=True, scale_in_fp32=True),
            "LayerNorm": LayerNorm(1e-5),
        },
    }
    return [BlockEntry(group, label, spec) for group, specs in groups.items() for label, spec in specs.items()]


def _attention(dim: int) -> dict[str, Block]:
    heads, rope, norm = dim // HEAD_DIM, RoPE(1e4), RMSNorm(1e-6)
    indexer = Indexer(heads=16, head_dim=HEAD_DIM, k=WINDOW, norm=LayerNorm(1e-6))
    mha = GQA(heads=heads, kv_heads=heads, head_dim=HEAD_DIM, rope=rope)
    gqa = replace(mha, kv_heads=heads // QUERIES_PER_KEY)
    entries = EntryIndexer(heads=16, head_dim=HEAD_DIM, k=WINDOW // 4)
    compressed = CompressedAttention(
        heads=heads,
        head_dim=2 * HEAD_DIM,
        rope_dim=HEAD_DIM // 2,
        window=WINDOW // 4,
        groups=heads // 2,
        o_rank=HEAD_DIM,
        q_rank=12 * HEAD_DIM,
        norm=norm,
        q_norm=replace(norm, weight=False),
        rope=rope,
    )
    latent: dict[str, Any] = {"q_rank": 12 * HEAD_DIM, "kv_rank": 4 * HEAD_DIM, "norm": norm, "rope": rope}
    latent |= {"nope_dim": HEAD_DIM, "rope_dim": HEAD_DIM // 2, "v_dim": HEAD_DIM}
    return {
        "MHA": mha,
        "GQA": gqa,
        "MQA": replace(mha, kv_heads=1),
        "SWA": replace(gqa, window=WINDOW),
        "MLA": MLA(heads, **latent),
        "GQA, NoPE": replace(gqa, rope=NoPE()),
        "GQA, QK-norm": replace(gqa, qk_norm=norm),
        "GQA, sinks": replace(gqa, sinks=True),
        "GQA, gate": replace(gqa, gate="element"),
        "GQA, cap": replace(gqa, cap=50.0),
        "chunked GQA": replace(gqa, chunk=WINDOW),
        "HCA": replace(compressed, compressor=Compressor(every=128)),
        "CSA": replace(compressed, compressor=Compressor(every=4, overlap=True, indexer=entries)),
        "sparse MLA": SparseMLA(heads, **latent, indexer=indexer),
        "Gated DeltaNet": GatedDeltaNet(heads // 2, heads, HEAD_DIM, HEAD_DIM, CONV, norm),
        "KDA": KDA(heads, HEAD_DIM, CONV, replace(norm, scale_in_fp32=True)),
        "Mamba-2": Mamba2(2 * heads, HEAD_DIM, groups=1, state=2 * HEAD_DIM, conv=CONV, eps=1e-6),
        "short convolution": ShortConv(dim, CONV),
    }


def _feed_forward(dim: int) -> dict[str, Block]:
    dense, expert = GLU(4 * dim, SwiGLU()), GLU(4 * dim // ACTIVE_EXPERTS)
    grouped = GroupedSigmoidTopK(k=ACTIVE_EXPERTS - 1, groups=4, keep=2, scale=2.5)
    return {
        "SwiGLU": dense,
        "GeGLU": replace(dense, act=GeGLU()),
        "clamped SwiGLU": replace(dense, act=ClampedSwiGLU(alpha=1.702, limit=7.0)),
        "MoE, softmax": MoE(EXPERTS, expert, SoftmaxTopK(k=ACTIVE_EXPERTS)),
        "MoE, shared": MoE(EXPERTS, expert, grouped, shared=expert),
        "MoE, gated shared": MoE(EXPERTS, expert, grouped, shared=Gated(expert)),
        "MoE, grouped softmax": MoE(EXPERTS, expert, GroupedSoftmaxTopK(ACTIVE_EXPERTS, groups=4, keep=2, scale=1.0)),
        "MoE, sqrt-softplus": MoE(EXPERTS, expert, SqrtSoftplusTopK(ACTIVE_EXPERTS, scale=1.5)),
        "MoE, by token id": MoE(EXPERTS, expert, HashTopK(ACTIVE_EXPERTS, scale=1.5, vocab=TOKEN_IDS)),
        "MoE, input-scaled": MoE(EXPERTS, expert, InputScaledTopK(k=ACTIVE_EXPERTS)),
        "MLP, GELU": MLP(4 * dim),
        "MLP, squared ReLU": MLP(4 * dim, ReLUSquared()),
    }


@dataclass(frozen=True)
class BlockConfig:
    """The sizes and the conditions of the measurement.

    `tokens`: tokens of a prefill. `context`: tokens that a decoded token sees, itself included.
    """

    dim: int
    tokens: int
    context: int
    dtype: torch.dtype = torch.float32
    repeat: int = 5
    seed: int = 0


def run(entries: Sequence[BlockEntry], config: BlockConfig, samples: Samples) -> None:
    """Times all blocks in turns, and fills `samples` by (label, phase)."""
    with torch.inference_mode(), progress("measuring") as bar:
        pairs = ((entry, build_block(entry.spec, config.dim, config.dtype, config.seed)) for entry in entries)
        tasks = [task for entry, module in pairs for task in block_tasks(entry, module, config)]
        measure(tasks, samples, repetitions=config.repeat, tick=bar.tick, expect=bar.expect)


def require_block_memory(entries: Sequence[BlockEntry], config: BlockConfig) -> None:
    """Raises NotAvailable unless all blocks, their caches and the largest pass fit together into the free memory."""
    weights = sum(entry.spec.params(config.dim) for entry in entries)
    specs = [_cache_spec(entry.spec) for entry in entries]
    past = config.context + config.tokens
    caches = sum(spec.elements() * (spec.tokens(config.context) + config.tokens) for spec in specs)
    caches += sum(entries.elements * entries.count(past) for spec in specs for entries in spec.entries)
    widest = max(4, config.tokens // 64) * 4 * config.dim * config.tokens  # activations; scores of every head
    needed = (weights + caches + widest) * config.dtype.itemsize
    advice = "a smaller --dim, --tokens or --context needs less"
    require_memory(needed, CPU, f"all blocks at width {config.dim:,} need", lambda free: advice)


def _cache_spec(spec: Block) -> CacheSpec:
    return spec.cache_spec() if isinstance(spec, Mixer) else CacheSpec(per_token=())


def build_block(spec: Block, dim: int, dtype: torch.dtype, seed: int) -> nn.Module:
    """Returns the block's module on the CPU, in eval mode, with random weights drawn from `seed`."""
    with allocating("cpu", dtype):
        module = spec.build(dim).eval()
    initialise(module, seed)
    return module


def block_context(spec: Mixer, cache: Cache, past: int, new: int, dtype: torch.dtype = torch.float32) -> ForwardContext:
    """Returns the forward context of one mixer for `new` tokens that follow `past` tokens in its `cache`.

    `dtype` is passed to `prepare_forward`.
    """
    return prepare_forward(past, new, spec.tables(), cache.layers, CPU, dtype)


def block_tasks(entry: BlockEntry, module: nn.Module, config: BlockConfig) -> Iterator[Task]:
    """Yields the prefill task, then the decode task.

    A mixer gets a cache filled with random values. Its forward context is prepared beforehand, because a model prepares
    it once for all layers. A router that chooses by token id gets random ids.
    """
    generator = torch.Generator().manual_seed(config.seed)
    for phase, past, new in ((PREFILL, 0, config.tokens), (DECODE, config.context - 1, 1)):
        streams = getattr(entry.spec, "streams", None)
        width = (streams.count, config.dim) if streams else (config.dim,)
        x = torch.randn(1, new, *width, generator=generator).to(config.dtype)
        rest: tuple[Any, ...] = ()
        if any(getattr(part, "reads_tokens", False) for part in entry.spec.walk()):
            ids = torch.randint(TOKEN_IDS, (1, new), generator=generator)
            rest = (ForwardContext(torch.arange(past, past + new), {}, {}, tokens=ids),)
        if isinstance(entry.spec, Mixer):
            cache = Cache([entry.spec.cache_spec()], 1, past + new, config.dtype, CPU)
            for kept in cache.layers[0].kept():
                kept.normal_(generator=generator)
            rest = block_context(entry.spec, cache, past, new), cache.layers[0]
        yield Task((entry.label, phase), partial(_touched, x, partial(module, x, *rest)))


def _touched(x: Tensor, run: Callable[[], object]) -> Callable[[], object]:
    """Reads `x`, so that it is in the processor's caches, as in a model, which has just written it. Returns `run`."""
    x.clone()
    return run


def rows(entries: Sequence[BlockEntry], config: BlockConfig, samples: Samples) -> list[dict[str, Any]]:
    """Returns one row for each block that was measured at least once in both phases."""
    made = []
    for group, label, spec in entries:
        if not all(samples.get((label, phase)) for phase in (PREFILL, DECODE)):
            continue
        kept = _cache_spec(spec)
        fixed, per_token = kept.growth(config.dtype.itemsize)
        made.append(
            {
                "table": "blocks",
                "group": group,
                "block": label,
                "description": spec.describe(),
                "dim": config.dim,
                "dtype": dtype_name(config.dtype),
                "threads": torch.get_num_threads(),
                "params": spec.params(config.dim),
                "active_params": spec.active_params(config.dim),
                "kv_fixed_bytes": fixed,
                "kv_bytes_per_token": whole(per_token),
                "tokens": config.tokens,
                "context": config.context,
                "prefill_flops": spec.flops(config.dim, 0, config.tokens),
                "decode_flops": spec.flops(config.dim, config.context - 1, 1),
                **time_columns(PREFILL, samples[label, PREFILL]),
                **time_columns(DECODE, samples[label, DECODE]),
            }
        )
    return made


def time_columns(phase: str, seconds: Sequence[float]) -> dict[str, Any]:
    """Returns median, minimum and maximum (None without samples), and the samples, as columns of a row."""
    middle, low, high = (of(seconds) if seconds else None for of in (median, min, max))
    return {f"{phase}_s": middle, f"{phase}_s_min": low, f"{phase}_s_max": high, f"{phase}_seconds": list(seconds)}
