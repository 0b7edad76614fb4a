"""How a throughput row is timed: `measure_throughput` builds the candidates, `run` times them in turns.

The machine's ceilings take turns with them. Whatever was timed, before an interruption too, becomes rows and tables.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from benchmarks.analytic.models import NamedSpec
from benchmarks.measure import ceilings
from benchmarks.measure.benchmark_models import BenchmarkModel, Variant, memory_need, require_model_memory
from benchmarks.measure.candidates import Candidate, Key, Results, ThroughputConfig, inference, zoo_candidates
from benchmarks.measure.devices import clock, start_memory_meter
from benchmarks.measure.environment import recorded
from benchmarks.measure.observed import gemm_task, observe
from benchmarks.measure.runners import COMPILED, EAGER, NullRunner, Workload, random_tokens, task, workloads
from benchmarks.measure.throughput_rows import ceiling_rows, harness_key, rows
from benchmarks.measure.throughput_tables import tables
from benchmarks.measure.timing import Clock, Task, measure
from benchmarks.output.progress import Progress, progress
from benchmarks.output.report import Report
from zoo.core.devices import find_device
from zoo.errors import UsageError, require_package

TINY_THREADS = 1  # toy matrices leave a second thread nothing but waiting, which would be measured too
TINY_PREFILL, TINY_DECODE = 256, 32  # tokens


def throughput_config(
    dtype: torch.dtype | None,
    *,
    device: str = "cpu",
    batch: int = 1,
    prompt: int = 512,
    generate: int = 128,
    depths: Sequence[int] = (0,),
    threads: int | None = None,
    seed: int = 0,
    repetitions: int = 5,
    tiny: bool = False,
) -> ThroughputConfig:
    """The configuration that a command's options ask for. `dtype` None: bfloat16 on a GPU, float32 elsewhere.

    Raises UsageError for options that leave nothing to measure and for a dtype that nothing is computed in,
    NotAvailable for a device that is not here.
    """
    place = find_device(device)
    if dtype is not None and dtype.itemsize < 2:
        raise UsageError(f"--dtype {str(dtype).removeprefix('torch.')}: no model here computes in it; choose bfloat16")
    return ThroughputConfig(
        workloads=workloads(prompt, generate, depths, batch),
        dtype=dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32),
        device=place,
        threads=threads or (TINY_THREADS if tiny else torch.get_num_threads()),
        seed=seed,
        repetitions=repetitions,
    )


def measure_throughput(
    report: Report,
    models: Sequence[BenchmarkModel],
    config: ThroughputConfig,
    modes: Sequence[str],
    peer: bool = False,
    peer_compiled: bool = False,
) -> None:
    """Build and time all models together, with `peer` transformers beside the zoo, and add the tables to the report.

    Raises NotAvailable, before anything is built, where they do not fit into memory; CheckFailed where the logits of
    transformers are not equal.
    """
    peer = peer or peer_compiled
    if peer:
        require_package("transformers", "parity")
    runs = len(modes) + peer + peer_compiled
    need = memory_need(config.workloads, runs, copies=2 if peer else 1)
    require_model_memory(models, need, config.device, config.dtype)
    results = Results(config)
    try:
        with recorded(report, config.device), progress("building") as bar:
            for model in models:
                bar.doing(f"building {model.label}")
                results.candidates += _candidates(model, config, modes, peer, peer_compiled)
            run(results, bar)
    finally:
        if timed := rows(results):
            report.add(*tables(timed, ceiling_rows(results), report.about["machine"]))


def _candidates(
    benchmark_model: BenchmarkModel, config: ThroughputConfig, modes: Sequence[str], peer: bool, peer_compiled: bool
) -> Iterator[Candidate]:
    model = benchmark_model.build(config.device, config.dtype, config.seed)
    yield from zoo_candidates(benchmark_model, model, modes)
    if peer:
        from benchmarks.measure import baseline  # only here: it imports transformers, an extra

        yield from baseline.baseline_candidates(benchmark_model, model, config, peer_compiled)


def run(results: Results, bar: Progress, timer: Clock | None = None) -> None:
    """Time the candidates in turns, filling `results`; the candidates of a workload follow each other."""
    config, candidates = results.config, results.candidates
    timer = timer or clock(config.device)
    with inference(config.threads):
        tasks = {each.key(work): each.task(work, config) for work in config.workloads for each in candidates}
        beside: list[Task] = []
        if config.thorough:
            bar.doing("first runs")
            _observe(results, tasks)
            compiles = any(candidate.mode == COMPILED for candidate in candidates)
            results.kernels = ceilings.kernels(config.device, config.dtype, timer, compiles)
            beside += [_harness_task(work, config) for work in config.workloads]
            beside += [gemm_task(key, seen.gemms) for key, seen in results.observed.items() if seen.gemms]
            beside += ceilings.tasks(results.kernels)
        bar.doing("measuring")
        measure(
            [*tasks.values(), *beside],
            results.samples,
            warmups=results.warmups,
            repetitions=config.repetitions,
            clock=timer,
            tick=bar.tick,
            expect=bar.expect,
        )


def _observe(results: Results, tasks: dict[Key, Task]) -> None:
    """Observe each task once; a compiled model has run before, since compiling takes memory too. GEMMs are kept for the
    zoo's prefills alone: a decode step does little else than read the same weights."""
    config = results.config
    for candidate in results.candidates:
        for work in config.workloads:
            if candidate.mode == COMPILED:
                candidate.task(work, config).prepare()()
            key, start_meter = candidate.key(work), partial(start_memory_meter, config.device)
            seen = observe(tasks[key], candidate.runner.weight_bytes, start_meter, candidate.watched)
            if work.phase == "decode":
                seen.gemms.clear()
            results.observed[key] = seen


def _harness_task(work: Workload, config: ThroughputConfig) -> Task:
    """The same loop around a model that computes nothing."""
    return task(harness_key(work), NullRunner(), work, random_tokens(work, 1, config.seed, config.device))


def prepare_tiny(entries: Sequence[NamedSpec], seed: int) -> Results:
    """The tiny form of each model, built, to prefill and decode in eager float32 on the CPU. At toy widths there
    is next to no arithmetic: timing them measures the code's overhead per layer."""
    works = (Workload("prefill", TINY_PREFILL), Workload("decode", TINY_DECODE))
    config = ThroughputConfig(works, threads=TINY_THREADS, seed=seed, thorough=False)
    models = [Variant(tiny=True).of(BenchmarkModel(entry)) for entry in entries]
    built = [(model, model.build(config.device, config.dtype, config.seed)) for model in models]
    return Results(config, [each for model, module in built for each in zoo_candidates(model, module, [EAGER])])


def measure_tiny(results: Results) -> None:
    """Time the tiny forms, filling `results`."""
    with progress("measuring") as bar:
        run(results, bar)
