"""Each block alone, measured: a prefill of some tokens, and one token decoded at a context, the blocks taking turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure.block_list import Entry
from benchmarks.measure.side_by_side import CPU, WARMUPS, made, planned, progress, spread
from benchmarks.measure.timing import Samples, Task, measure
from zoo.core.cache import Cache
from zoo.core.devices import free_memory
from zoo.costs import CacheSpec
from zoo.errors import NotAvailable
from zoo.registry import Block, Mixer
from zoo.units import dtype_name, format_bytes

PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True)
class Setting:
    """How to measure. `tokens`: of a prefill. `context`: tokens that a decoded one sees, itself included."""

    dim: int
    tokens: int
    context: int
    dtype: torch.dtype = torch.float32
    repeat: int = 5
    seed: int = 0


def run(entries: Sequence[Entry], setting: Setting, samples: Samples) -> None:
    """Fill `samples` by (label, phase)."""
    runs = len(entries) * 2 * (WARMUPS + setting.repeat)
    with torch.inference_mode(), progress(runs) as stage:
        modules = {entry.label: made(entry.spec, setting.dim, setting.dtype, setting.seed) for entry in entries}
        tasks = [task for entry in entries for task in _tasks(entry, modules[entry.label], setting)]
        measure(tasks, samples, repetitions=setting.repeat, tick=stage(runs, runs))


def check_memory(entries: Sequence[Entry], setting: Setting) -> None:
    """Raise NotAvailable unless all blocks, their caches and the largest pass between them fit the free memory."""
    weights = sum(entry.spec.params(setting.dim) for entry in entries)
    caches = sum(kept.elements() * (kept.tokens(setting.context) + setting.tokens) for kept in map(_stored, entries))
    widest = max(4, setting.tokens // 64) * 4 * setting.dim * setting.tokens  # activations; scores of every head
    needed, free = (weights + caches + widest) * setting.dtype.itemsize, free_memory(CPU)
    if free is not None and needed > free:
        raise NotAvailable(
            f"all blocks at width {setting.dim:,} need {format_bytes(needed)}, and {format_bytes(free)} is free; "
            "a smaller --dim, --tokens or --context needs less"
        )


def _stored(entry: Entry) -> CacheSpec:
    return entry.spec.cache_spec() if isinstance(entry.spec, Mixer) else CacheSpec(per_token=())


def _tasks(entry: Entry, module: nn.Module, setting: Setting) -> Iterator[Task]:
    """Prefill, then decode. A mixer has a cache, which holds a past drawn at random; a pass is planned beforehand, as a
    model does it once for all layers."""
    generator = torch.Generator().manual_seed(setting.seed)
    for phase, past, new in ((PREFILL, 0, setting.tokens), (DECODE, setting.context - 1, 1)):
        x = torch.randn(1, new, setting.dim, generator=generator).to(setting.dtype)
        yield _task((entry.label, phase), module, x, *_context(entry.spec, past, new, setting, generator))


def _context(spec: Block, past: int, new: int, setting: Setting, generator: torch.Generator) -> tuple[Any, ...]:
    """What a mixer is handed beside x: a planned step and a slot that holds `past` tokens."""
    if not isinstance(spec, Mixer):
        return ()
    cache = Cache([spec.cache_spec()], 1, past + new, setting.dtype, CPU)
    for stream in cache.layers[0].streams:
        stream.normal_(generator=generator)
    return planned(spec, cache, past, new), cache.layers[0]


def _task(name: tuple[str, str], module: nn.Module, x: Tensor, *context: Any) -> Task:
    def run() -> None:
        module(x, *context)

    def prepare() -> Callable[[], None]:
        x.clone()  # in a model, x has just been written: whatever ran before this block here pushed it out of reach
        return run

    return Task(name, prepare)


def rows(entries: Sequence[Entry], setting: Setting, samples: Samples) -> list[dict[str, Any]]:
    """One row for each block that was measured at least once in both phases."""
    both = [{phase: samples.get((entry.label, phase), []) for phase in (PREFILL, DECODE)} for entry in entries]
    return [_row(entry, setting, taken) for entry, taken in zip(entries, both, strict=True) if all(taken.values())]


def _row(entry: Entry, setting: Setting, taken: dict[str, list[float]]) -> dict[str, Any]:
    spec, dim, kept = entry.spec, setting.dim, _stored(entry)
    bytes_of_one = kept.elements() * setting.dtype.itemsize
    return {
        "table": "blocks",
        "group": entry.group,
        "block": entry.label,
        "words": spec.describe(),
        "dim": dim,
        "dtype": dtype_name(setting.dtype),
        "threads": torch.get_num_threads(),
        "params": spec.params(dim),
        "active_params": spec.active_params(dim),
        "kv_fixed_bytes": bytes_of_one * (kept.window or 0),
        "kv_bytes_per_token": 0 if kept.window else bytes_of_one,
        "tokens": setting.tokens,
        "context": setting.context,
        "prefill_flops": spec.flops(dim, 0, setting.tokens),
        "decode_flops": spec.flops(dim, setting.context - 1, 1),
        **spread(PREFILL, taken[PREFILL]),
        **spread(DECODE, taken[DECODE]),
    }
