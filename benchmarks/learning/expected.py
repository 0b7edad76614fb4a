"""The expected time of a comparison, extrapolated from a few timed training steps of each model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from time import perf_counter

import torch

import zoo
from benchmarks.learning.comparison import LearnConfig, Results
from benchmarks.learning.entries import Entry
from benchmarks.learning.runs import Run, RunStore
from benchmarks.learning.sweep import choose_rates
from benchmarks.learning.training import BITS_PER_BYTE
from benchmarks.learning.workers import one_thread
from zoo.model.decoder import Decoder
from zoo.training.loop import Trainer, TrainingConfig
from zoo.training.losses import Batch

TIMED_STEPS = 2
OVERHEAD = 1.2  # factor for evaluations, building, and processes that share the memory's bandwidth


def planned(results: Results, store: RunStore) -> list[tuple[Entry, Run]]:
    """Returns the runs that are not kept yet.

    A run whose learning rate is still open counts as kept if it is kept at one rate of the sweep. A widening of a sweep
    is not predicted.
    """
    config, found = results.config, list[tuple[Entry, Run]]()
    for entry in results.entries:
        rates: Iterable[float] = config.rates
        if config.fixed is not None:
            rates = [config.fixed(entry)]
        else:
            sweep = [config.sweep_run(entry, rate, results.tokens.hash) for rate in config.rates]
            missing = store.missing(sweep)
            found += [(entry, run) for run in missing]
            rates = config.rates if missing else [_kept_best(entry, results, store)]
        for task in config.trained:
            for seed in range(config.seeds):
                each = (config.run(entry, task, rate, seed, results.tokens.hash) for rate in rates)
                runs = list(
                    dict.fromkeys(each)
                )  # synthetic tasks have one rate, so the runs of several rates may be equal
                if len(store.missing(runs)) == len(runs):
                    found.append((entry, runs[0]))
    return found


def _kept_best(entry: Entry, results: Results, store: RunStore) -> float:
    """Returns the learning rate that a model's kept sweep chooses, as far as it was widened."""

    def losses(pairs: Sequence[tuple[Entry, float]]) -> dict[tuple[Entry, float], float]:
        kept = {pair: store.load(results.config.sweep_run(*pair, results.tokens.hash)) for pair in pairs}
        return {pair: outcome.figures.get(BITS_PER_BYTE, inf) for pair, outcome in kept.items() if outcome}

    return choose_rates([entry], results.config.rates, losses)[entry].best


def expected_seconds(plan: Iterable[tuple[Entry, Run]], config: LearnConfig, jobs: int) -> float:
    """Returns the seconds that these runs will take, `jobs` at a time."""
    runs = [run for _, run in plan]
    seconds = {spec: seconds_per_token(spec, config) for spec in dict.fromkeys(run.spec for run in runs)}
    each = [run.tokens * seconds[run.spec] for run in runs]
    return max(sum(each) * OVERHEAD / jobs, max(each, default=0.0))


def seconds_per_token(spec: Decoder, config: LearnConfig) -> float:
    """Returns the training seconds per token on one thread: the fastest of TIMED_STEPS steps after a warm-up step."""
    with one_thread():
        trainer = Trainer(zoo.build(spec), TrainingConfig(TIMED_STEPS + 1, 1e-3, config.batch, config.context))
        tokens = torch.randint(spec.vocab, (config.batch, config.context), generator=torch.Generator().manual_seed(0))
        seconds = []
        for _ in range(TIMED_STEPS + 1):
            start = perf_counter()
            trainer.train_step(Batch(tokens, tokens))
            seconds.append(perf_counter() - start)
    return min(seconds[1:]) / tokens.numel()


def format_duration(seconds: float) -> str:
    """Returns a duration in words: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def describe(runs: int, seconds: float, jobs: int) -> str:
    """Returns a line that announces the runs and their expected time."""
    at_once = "one at a time" if jobs == 1 else f"{jobs} at a time"
    return f"{runs} runs to make, {at_once}: about {format_duration(seconds)}; more if a sweep is widened"
