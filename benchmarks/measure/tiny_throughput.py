"""Prefill and decode speed of models in their tiny form, for the main job.

At toy widths there is next to no arithmetic: what is measured is the code's overhead, layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.analytic.models import Model
from benchmarks.measure.benchmark_models import Subject
from benchmarks.measure.runners import Workload
from benchmarks.measure.throughput import EAGER, TINY_THREADS, Entrant, Found, Setting, of_zoo, run
from benchmarks.output.progress import progress
from zoo.swaps.tiny import tiny

PREFILL, DECODE = 256, 32


def setting(seed: int) -> Setting:
    """Two tests in float32 on the CPU."""
    works = (Workload("prefill", PREFILL), Workload("decode", DECODE))
    return Setting(works, threads=TINY_THREADS, seed=seed, thorough=False)


def entrants(models: Sequence[Model], setting: Setting) -> list[Entrant]:
    """The tiny forms, built."""
    subjects = [Subject(replace(model, spec=tiny(model.spec)), tiny=True) for model in models]
    built = [(each, each.build(setting.device, setting.dtype, setting.seed)) for each in subjects]
    return [entrant for subject, model in built for entrant in of_zoo(subject, model, [EAGER])]


def measure(entrants: Sequence[Entrant], setting: Setting, found: Found) -> None:
    """Time them, filling `found`."""
    with progress("measuring") as bar:
        run(entrants, setting, found, bar)
