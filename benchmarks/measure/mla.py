"""The three forms of latent attention, measured: one token decoded at each context, the forms taking turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure.mla_variants import ABSORBED, fill, forms, modules, scratch_numbers
from benchmarks.measure.side_by_side import CPU, WARMUPS, made, planned, progress, spread
from benchmarks.measure.timing import Samples, Task, measure
from zoo.blocks.mla import MLA
from zoo.cli.self_check import TOLERANCE
from zoo.core.cache import Cache
from zoo.core.devices import free_memory
from zoo.errors import NotAvailable
from zoo.units import dtype_name, format_bytes


@dataclass(frozen=True)
class Setting:
    """How to measure. `contexts`: tokens that the decoded one sees, itself included."""

    contexts: Sequence[int]
    dtype: torch.dtype = torch.float32
    repeat: int = 5
    seed: int = 0

    def kv_bytes(self, spec: MLA, context: int) -> int:
        """Of one layer, one sequence."""
        return context * spec.cache_spec().elements() * self.dtype.itemsize


@dataclass(frozen=True)
class Outcome:
    """One form at one context. `why` it was not run, if it was not; otherwise the bytes that were allocated, and the
    largest `difference` of its output from the absorbed form's, as a share of the largest output."""

    form: str
    context: int
    why: str | None = None
    allocated: int | None = None
    difference: float | None = None


def run(spec: MLA, dim: int, setting: Setting, outcomes: list[Outcome], samples: Samples) -> None:
    """Fill `outcomes`, a form and context each, and `samples` by (form, context in digits)."""
    built = modules(spec, made(spec, dim, setting.dtype, setting.seed), dim)
    with torch.inference_mode(), progress(sum(setting.contexts)) as stage:
        for context in setting.contexts:
            refused = too_large(forms(spec), context, setting, free_memory(CPU))
            outcomes += [Outcome(form, context, why) for form, why in refused.items()]
            turns = {form: module for form, module in built.items() if form not in refused}
            tasks = [_task(form, context, step) for form, step in _steps(spec, dim, turns, context, setting, outcomes)]
            tick = stage(len(tasks) * (WARMUPS + setting.repeat), context)
            measure(tasks, samples, repetitions=setting.repeat, tick=tick)


def too_large(specs: dict[str, MLA], context: int, setting: Setting, free: int | None) -> dict[str, str]:
    """Form -> what it needs and what is free, of those that do not fit beside the ones that need less.

    All that are measured at a context hold their caches at the same time; what a step makes and drops, one at a time.
    """
    refused, held, scratch = {}, 0, 0
    for form, spec in reversed(specs.items()):
        kept = setting.kv_bytes(spec, context)
        dropped = max(scratch, scratch_numbers(form, spec, context) * setting.dtype.itemsize)
        needed = held + kept + dropped
        if free is not None and needed > free:
            refused[form] = f"needs {format_bytes(needed)}, {format_bytes(free)} free"
        else:
            held, scratch = held + kept, dropped
    return refused


def check_memory(spec: MLA, dim: int, setting: Setting) -> None:
    """Raise NotAvailable where not even the weights fit the memory that is free."""
    needed, free = spec.params(dim) * setting.dtype.itemsize, free_memory(CPU)
    if free is not None and needed > free:
        raise NotAvailable(
            f"the weights of one layer's attention need {format_bytes(needed)}, and {format_bytes(free)} is free; "
            "--tiny measures it at toy widths"
        )


def _steps(
    spec: MLA, dim: int, turns: Mapping[str, nn.Module], context: int, setting: Setting, outcomes: list[Outcome]
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Form -> decoding one token after `context` - 1 of which the latents are drawn at random, as those of random
    activations are. Each has been run once and compared."""
    generator = torch.Generator().manual_seed(setting.seed)
    latent = torch.randn(1, 1, context - 1, spec.kv_rank + spec.rope_dim, generator=generator).to(setting.dtype)
    x = torch.randn(1, 1, dim, generator=generator).to(setting.dtype)
    steps = {form: _step(form, forms(spec)[form], turns[form], latent, x) for form in turns}
    outputs = {form: step().float() for form, (_, step) in steps.items()}
    expected = outputs.get(ABSORBED)
    for form, (cache, step) in steps.items():
        difference = None if expected is None else _apart(outputs[form], expected)
        outcomes.append(Outcome(form, context, allocated=cache.nbytes, difference=difference))
        yield form, step


def _task(form: str, context: int, step: Callable[[], Tensor]) -> Task:
    def run() -> None:
        step()

    return Task((form, str(context)), lambda: run)


def _step(form: str, spec: MLA, module: nn.Module, latent: Tensor, x: Tensor) -> tuple[Cache, Callable[[], Tensor]]:
    past = latent.shape[2]
    cache = Cache([spec.cache_spec()], 1, past + 1, x.dtype, CPU)
    fill(form, module, cache.layers[0].streams, latent)
    plan = planned(spec, cache, past, 1)
    return cache, lambda: module(x, plan, cache.layers[0])


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def rows(spec: MLA, dim: int, setting: Setting, outcomes: Sequence[Outcome], samples: Samples) -> list[dict[str, Any]]:
    """One row for each form and context that was measured or found too large, in the order of `forms`."""
    specs = forms(spec)
    found = {(each.context, each.form): each for each in outcomes}
    order = [found[context, form] for context in setting.contexts for form in specs if (context, form) in found]
    done = [each for each in order if each.why or (each.form, str(each.context)) in samples]
    told = [_row(specs[each.form], dim, setting, each, samples) for each in done]
    absorbed = {row["context"]: row["decode_s"] for row in told if row["form"] == ABSORBED}
    for row in told:
        base = absorbed.get(row["context"])
        row["against_absorbed"] = row["decode_s"] / base if row["decode_s"] and base else None
    return told


def _row(spec: MLA, dim: int, setting: Setting, outcome: Outcome, samples: Samples) -> dict[str, Any]:
    context = outcome.context
    return {
        "table": "mla",
        "form": outcome.form,
        "dim": dim,
        "heads": spec.heads,
        "params": spec.params(dim),
        "dtype": dtype_name(setting.dtype),
        "threads": torch.get_num_threads(),
        "context": context,
        "numbers_per_token": spec.cache_spec().elements(),
        "kv_bytes_per_token": setting.kv_bytes(spec, 1),
        "kv_bytes": setting.kv_bytes(spec, context),
        "allocated_bytes": outcome.allocated,
        "flops": spec.flops(dim, context - 1, 1),
        "difference": outcome.difference,
        "bound": TOLERANCE[setting.dtype],
        "too_large": outcome.why,
        **spread("decode", samples.get((outcome.form, str(context)), [])),
    }


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What should be equal and is not, a line each."""
    found = []
    for row in rows:
        where = f"{row['form']} at {row['context']} tokens"
        if row["allocated_bytes"] not in (None, row["kv_bytes"]):
            found.append(f"{where} allocated {row['allocated_bytes']:,} bytes, the formula says {row['kv_bytes']:,}")
        # "not <=": a NaN is a failure.
        if row["difference"] is not None and not row["difference"] <= row["bound"]:
            found.append(f"{where} differs from absorbed by {row['difference']:.1e} of it, above {row['bound']:.0e}")
    return found
