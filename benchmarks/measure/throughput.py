"""Measurement of throughput: `measure_throughput` builds the candidates, and `run` times them in turns.

The machine's ceilings are measured in the same turns. After an interruption, the runs timed so far are reported.
"""

from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import ceil
from typing import Any

import torch

from benchmarks.measure import ceilings, parallel, runners
from benchmarks.measure.baseline import baseline_candidates
from benchmarks.measure.benchmark_models import BenchmarkModel, first_layers
from benchmarks.measure.environment import CPU, clock, recorded, require_memory, start_memory_meter
from benchmarks.measure.observed import gemm_task, observe
from benchmarks.measure.runners import COMPILED, EAGER, ZOO, Results, ThroughputConfig, Workload, zoo_candidates
from benchmarks.measure.throughput_rows import ceiling_rows, harness_key, rows
from benchmarks.measure.throughput_rows import tables as throughput_tables
from benchmarks.measure.timing import Task, measure
from benchmarks.measure.training import training_bytes, training_candidates
from benchmarks.output.progress import progress
from benchmarks.output.report import Report, Row, Rows, Table
from zoo.core import processes
from zoo.errors import require_package
from zoo.model.decoder import Decoder
from zoo.units import dtype_name, format_count

TINY_THREADS = 1  # with toy matrices a second thread would only wait, and the measurement would include it
TINY_PREFILL, TINY_DECODE = 256, 32  # tokens


def throughput_config(
    works: tuple[Workload, ...],
    dtype: torch.dtype | None = None,
    device: torch.device = CPU,
    threads: int | None = None,
    tiny: bool = False,
    **settings: Any,
) -> ThroughputConfig:
    """Returns a config with these settings. `dtype` None: bfloat16 on a GPU, float32 elsewhere."""
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    threads = threads or (TINY_THREADS if tiny else torch.get_num_threads())
    return ThroughputConfig(works, dtype, device, threads, **settings)


def tiny_config(seed: int) -> ThroughputConfig:
    """Returns the config of tiny models: prefill and decode in eager float32 on the CPU.

    Toy widths need almost no arithmetic, so the times show the code's overhead per layer.
    """
    works = (Workload("prefill", TINY_PREFILL), Workload("decode", TINY_DECODE))
    return throughput_config(works, tiny=True, seed=seed, thorough=False)


def measure_throughput(
    report: Report,
    models: Sequence[BenchmarkModel],
    config: ThroughputConfig,
    tables: Callable[[Rows, Rows, Row], Iterable[Table]] = throughput_tables,
) -> None:
    """Builds and times all models, and adds the `tables` of speeds, ceilings and machine to the report.

    Raises NotAvailable, before anything is built, if the models do not fit into memory. Raises CheckFailed if the zoo's
    results differ from the baseline's: logits or, in training, the loss or the gradient norm.
    """
    if config.baseline:
        require_package("transformers", "parity")
    require_model_memory(models, config)
    results = Results(config)

    def measured() -> Iterable[Table]:
        timed = rows(results)
        return tables(timed, ceiling_rows(results), report.about["machine"]) if timed else ()

    with recorded(report, config.device, measured):
        build(models, results)
        run(results)


def build(models: Sequence[BenchmarkModel], results: Results) -> None:
    """Adds the candidates of the models to the results."""
    config = results.config
    with progress("building") as bar:
        for model in models:
            bar.doing(f"building {model.label}")
            module = model.build(config.device, config.dtype, config.seed, config.ranks)
            if config.trains:
                results.candidates += training_candidates(model, module, config)
                continue
            results.candidates += zoo_candidates(model, module, config.modes)
            if config.baseline:
                results.candidates += baseline_candidates(model, module, config)
            if config.one_process:
                results.candidates += parallel.whole_candidates(model, module, config)


def needed_bytes(spec: Decoder, dtype: torch.dtype, works: Sequence[Workload], modes: int, copies: int = 1) -> int:
    """Returns the bytes that weights, caches and activations need.

    Weights count `copies` times. In each of `modes` modes, every workload has a cache and a snapshot of its sliding
    windows. Activations are those of the pass with the most tokens. In training, every mode has its own weights.
    """
    if works[0].phase == "train":
        return max(training_bytes(spec, dtype, work, modes) for work in works)
    caches = sum(spec.kv_bytes(work.capacity, work.batch, dtype) for work in works)
    snapshots = sum(ceil(spec.kv_growth(dtype)[0]) * work.batch for work in works if work.depth)
    widest = max(work.batch * max(new for _, new in work.passes) for work in works)
    hidden = max(layer.active_params(spec.dim) // spec.dim for layer in spec.layers)  # elements per token, at most
    room = (widest * (hidden + 4 * spec.dim) + works[0].batch * spec.vocab) * dtype.itemsize
    return copies * spec.params() * dtype.itemsize + modes * (caches + min(snapshots, caches)) + room


def require_model_memory(models: Sequence[BenchmarkModel], config: ThroughputConfig) -> None:
    """Raises NotAvailable, naming options that would fit, unless all models together fit into the free memory.

    On the CPU, the shards of all ranks of this machine count.
    """
    layers, half = max((len(model.spec.layers) for model in models), default=0), torch.bfloat16
    here = processes.local_ranks() if config.device.type == "cpu" else 1
    modes, copies = len(config.modes) + config.baseline + config.baseline_compiled, 1 + config.baseline

    def total(number: int, dtype: torch.dtype) -> int:
        specs = [first_layers(model.spec, number) for model in models]
        held = [*([config.ranks.own(spec) for spec in specs] * here), *(specs if config.one_process else ())]
        return sum(needed_bytes(spec, dtype, config.workloads, modes, copies) for spec in held)

    def advice(free: int) -> str:
        fits_half = config.dtype.itemsize > half.itemsize and total(layers, half) <= free
        most = bisect(range(1, layers), False, key=lambda number: total(number, config.dtype) > free)
        options = [*(["--dtype bfloat16"] if fits_half else []), *([f"--layers {most}"] if most else []), "--tiny"]
        return f"what would fit: {', '.join(options)}"

    names = ", ".join(f"{model.label} ({format_count(model.spec.params())} parameters)" for model in models)
    what = f"{names} in {dtype_name(config.dtype)} {'needs' if len(models) == 1 else 'need together'}"
    require_memory(total(layers, config.dtype), config.device, what, advice)


def run(results: Results) -> None:
    """Times all candidates in turns, one workload after another in each round, and fills `results`."""
    config, candidates, timer = results.config, results.candidates, clock(results.config.device)
    divided = config.ranks.group is not None
    timer = parallel.ready_clock(timer) if divided else timer
    with runners.inference(config.threads), progress("first runs") as bar:
        tasks = {each.key(work): each.task(work, config) for work in config.workloads for each in candidates}
        beside: list[Task] = []
        if config.thorough:
            _observe(results, tasks)
            compiles = any(candidate.mode == COMPILED for candidate in candidates)
            results.kernels = ceilings.kernels(config.device, config.dtype, timer, compiles, parallel.seconds_of_first)
            for work in config.workloads:
                tokens = runners.random_tokens(work, 1, config.seed, config.device)
                beside.append(runners.task(harness_key(work), runners.IDLE, work, tokens))
            beside += [gemm_task(key, seen.gemms) for key, seen in results.observed.items() if seen.gemms]
            beside += [Task.ready(kernel.key, kernel.run) for kernel in results.kernels]
            if divided:
                beside += parallel.exchange_tasks(candidates, config)
        bar.doing("measuring")
        measure(
            [*tasks.values(), *beside],
            results.samples,
            warmups=results.warmups,
            repetitions=config.repetitions,
            clock=timer,
            agree=parallel.seconds_of_first,
            tick=bar.tick,
            expect=bar.expect,
        )


def _observe(results: Results, tasks: dict[runners.Key, Task]) -> None:
    """Observes each task once. A compiled model runs once before that, because compiling takes memory too.

    GEMMs are recorded only for the zoo's prefills: a decode step does little else than read the same weights. In
    training, only the memory is observed.
    """
    config = results.config
    for candidate in results.candidates:
        for work in config.workloads:
            if candidate.mode == COMPILED:
                candidate.task(work, config).prepare()()
            key, runner, start_meter = candidate.key(work), candidate.runner, partial(start_memory_meter, config.device)
            runner.release()
            infers = work.phase != "train"
            watched = runner.model if infers and (candidate.implementation, candidate.mode) == (ZOO, EAGER) else None
            seen = observe(tasks[key], runner.weight_bytes, start_meter, watched)
            if work.phase == "decode":
                seen.gemms.clear()
            results.observed[key] = seen
