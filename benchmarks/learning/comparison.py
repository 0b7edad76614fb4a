"""A comparison: scaled-down models, training runs in their order, their outcomes and expected time.

Every model is trained at its own learning rate, which a sweep chooses on the tuning text. Then each seed trains every
model on the same data in the same order. Stored runs are not repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from math import inf
from pathlib import Path
from typing import get_args

import torch

import zoo
from benchmarks.analytic.models import NamedSpec, representatives
from benchmarks.learning.runs import TEXT, Outcome, Run, RunStore
from benchmarks.learning.sweep import Sweep, check_trained, choose_rates
from benchmarks.learning.tasks import TASKS
from benchmarks.learning.tasks import VOCAB as TASK_VOCAB
from benchmarks.learning.training import BITS_PER_BYTE, LENGTHS, perform
from benchmarks.learning.workers import Failure, Workers, one_thread
from benchmarks.output.progress import progress
from zoo.cli.training import minutes
from zoo.errors import SpecError, UsageError, unknown
from zoo.model.decoder import Decoder
from zoo.swaps.grammar import apply_swaps
from zoo.swaps.scaled import Match, Scaled, resolved, scaled
from zoo.training.loop import Trainer, TrainingConfig
from zoo.training.losses import Batch
from zoo.training.run import time_steps
from zoo.training.text.tokens import Split, TokenFile, open_tokens

VOCAB = 256  # bytes
TASK_LAYERS = 2  # of the models for synthetic tasks: recall needs two layers of attention
LENGTH = "length"  # text beyond the training context
ALL_TASKS = (TEXT, LENGTH, *TASKS)
SWEEP_SHARE = 0.5  # steps of a sweep run, as a share of the steps of a final run
# The learning rate of synthetic tasks. A model learns recall all at once, after some hundred steps at a constant rate.
# At half or twice this rate, or under a cosine, it learns recall later or not at all.
TASK_RATE = 4e-3
SWEEP_SEED = 10_000  # no final run has this seed: a lucky seed must not choose its own learning rate
MIN_STEPS = 2
OVERHEAD = 1.2  # factor of the expected time: evaluations, building, and processes that share the memory's bandwidth


@dataclass(frozen=True)
class Entry:
    """A model of the comparison: the named model with its swaps, and the two models scaled down from it.

    `scaled` is trained on text. `on_tasks` has two layers and half as many parameters, and learns synthetic tasks.
    """

    model: NamedSpec
    scaled: Scaled
    on_tasks: Scaled

    @property
    def spec(self) -> Decoder:
        """The scaled-down model that learns text."""
        return self.scaled.spec

    @property
    def label(self) -> str:
        """The name and the swaps."""
        return f"{self.model.name} {self.model.swap}" if self.model.swap else self.model.name


def small_models(
    names: Sequence[str],
    swaps: Sequence[str] = (),
    params: int = 200_000,
    match: Match = "params",
    context: int = 256,
    ignore_fields: Iterable[str] = (),
) -> list[Entry]:
    """Scales down each named model; without names, one of every family.

    Each of `swaps` adds an entry, whose scaled-down models are changed and then fitted to their budgets again. Several
    changes in one swap are separated by ";".

    Raises UsageError for unknown names, for swaps without names and for swaps that cannot be parsed, SpecError for a
    budget that is too small.
    """
    found = []
    for model in representatives(names, (), ignore_fields):
        try:
            small = scaled(model.spec, params, match=match, vocab=VOCAB, context=context)
            on_tasks = scaled(
                model.spec, params // 2, match=match, vocab=TASK_VOCAB, context=context, layers=TASK_LAYERS
            )
            found.append(Entry(replace(model, spec=small.spec), small, on_tasks))
            for swap in swaps:
                changed, dropped = apply_swaps(small.spec, changes := [each.strip() for each in swap.split(";")])
                again = resolved(changed, params, match=match)
                two_layers = resolved(apply_swaps(on_tasks.spec, changes)[0], params // 2, match=match)
                named = replace(model, spec=again.spec, size=None, swap=swap, dropped=", ".join(dropped) or None)
                found.append(Entry(named, again, two_layers))
        except SpecError as error:
            raise SpecError(f"{model.name}: {error}") from error
    return found


@dataclass(frozen=True)
class LearnConfig:
    """The training of a comparison.

    `tasks`: names in ALL_TASKS. A run on text has `steps` steps of `batch` sequences of `context` tokens. `seeds`:
    their number. `rates`: the first learning rates of a sweep. `fixed`: returns a model's rate, without a sweep.
    `task_rate`: the rate of synthetic tasks.
    """

    tasks: tuple[str, ...]
    steps: int
    seeds: int
    context: int = 256
    batch: int = 8
    rates: tuple[float, ...] = ()
    fixed: Callable[[Entry], float] | None = None
    task_rate: float = TASK_RATE

    @property
    def tokens(self) -> int:
        """Training tokens of a text run."""
        return self.steps * self.batch * self.context

    @property
    def trained(self) -> tuple[str, ...]:
        """The tasks to train. The length task is measured on the models that are trained on text."""
        return tuple(dict.fromkeys(TEXT if task == LENGTH else task for task in self.tasks))


@dataclass
class Results:
    """The results of a comparison: sweeps (None if the rate was given), learning rates, and outcomes."""

    entries: Sequence[Entry]
    config: LearnConfig
    tokens: TokenFile
    sweeps: dict[Entry, Sweep | None] = field(default_factory=dict)
    rates: dict[Entry, float] = field(default_factory=dict)
    outcomes: dict[Run, Outcome] = field(default_factory=dict)

    def run(self, entry: Entry, task: str, seed: int, rate: float | None = None) -> Run:
        """Returns a model's run on a task of `LearnConfig.trained`. On text, `rate` replaces the model's own rate."""
        config = self.config
        if task == TEXT:
            rate = rate or self.rates[entry]
            return Run(entry.spec, TEXT, rate, seed, config.steps, config.batch, config.context, self.tokens.hash)
        synthetic = TASKS[task]
        size, spec = max(synthetic.sizes), entry.on_tasks.spec
        batch, context = synthetic.batch(size), synthetic.length(size)
        return Run(spec, task, config.task_rate, seed, synthetic.steps, batch, context)

    def sweep_run(self, entry: Entry, rate: float) -> Run:
        """Returns a run on text for a sweep: shorter, and evaluated on the tuning text."""
        steps = max(MIN_STEPS, round(self.config.steps * SWEEP_SHARE))
        return replace(self.run(entry, TEXT, SWEEP_SEED, rate), steps=steps, split="tuning")

    def figures(self, entry: Entry, task: str, figure: str) -> dict[int, float]:
        """Returns {seed: value of `figure`} for a model's finished runs on a task. Diverged runs are left out."""
        ended = {seed: self.outcomes.get(self.run(entry, task, seed)) for seed in range(self.config.seeds)}
        return {seed: outcome.figures[figure] for seed, outcome in ended.items() if outcome and outcome.figures}


class Comparison:
    """Makes the runs of a comparison that have no stored outcome yet, `jobs` runs at a time.

    Notes on stderr state the expected time and name each run that fails or diverges. `made` and `failed` count runs.
    """

    def __init__(self, results: Results, store: RunStore, jobs: int) -> None:
        self.results, self.store, self.jobs = results, store, jobs
        self.made = self.failed = 0

    def finish(self) -> None:
        """Chooses learning rates, then trains every model on every task with every seed.

        Raises CheckFailed for a model that no learning rate can train.
        """
        if plan := self.planned():
            at_once = "one at a time" if self.jobs == 1 else f"{self.jobs} at a time"
            time = minutes(self.expected_seconds(plan))
            note(f"{len(plan)} runs to make, {at_once}: about {time}; more if a sweep is widened")
        results, config = self.results, self.results.config
        function = partial(_perform_and_keep, store=self.store, token_path=results.tokens.path)
        with Workers[Run, Outcome](function, self.jobs) as self.workers, progress("training") as self.bar:
            try:
                if config.fixed is not None:
                    results.sweeps = dict.fromkeys(results.entries)
                    results.rates = {entry: config.fixed(entry) for entry in results.entries}
                else:
                    sweeps = choose_rates(results.entries, config.rates, self._tuning_losses)
                    check_trained((entry.label, sweep) for entry, sweep in sweeps.items())
                    results.sweeps = dict(sweeps)
                    results.rates = {entry: sweep.best for entry, sweep in sweeps.items()}
                self._make(
                    results.run(entry, task, seed)
                    for task in config.trained
                    for seed in range(config.seeds)
                    for entry in results.entries
                )
            except KeyboardInterrupt:
                note(f"{self.made} runs were made and are kept in {self.store.folder}; the same command continues")
                raise

    def planned(self) -> list[Run]:
        """Returns the runs that are still to be made.

        As long as a learning rate is not chosen, a run counts as made if it was made at any rate of the sweep. Runs
        that widen a sweep are not included.
        """
        results, config, found = self.results, self.results.config, list[Run]()
        for entry in results.entries:
            rates: Sequence[float] = config.rates
            if config.fixed is not None:
                rates = [config.fixed(entry)]
            elif missing := self.store.missing(results.sweep_run(entry, rate) for rate in rates):
                found += missing
            else:
                rates = [choose_rates([entry], rates, self._kept_losses)[entry].best]
            for task in config.trained:
                for seed in range(config.seeds):
                    # On a synthetic task, the runs at several rates are the same run.
                    runs = list(dict.fromkeys(results.run(entry, task, seed, rate) for rate in rates))
                    if len(self.store.missing(runs)) == len(runs):
                        found.append(runs[0])
        return found

    def expected_seconds(self, runs: Iterable[Run]) -> float:
        """Returns the seconds that these runs will take, extrapolated from a few training steps of each model."""
        runs = list(runs)
        seconds = {spec: seconds_per_token(spec, self.results.config) for spec in {run.spec: None for run in runs}}
        each = [run.tokens * seconds[run.spec] for run in runs]
        return max(sum(each) * OVERHEAD / self.jobs, *each)

    def _tuning_losses(self, pairs: Sequence[tuple[Entry, float]]) -> dict[tuple[Entry, float], float]:
        """Makes the sweep runs of these (model, rate) pairs, and returns the losses of the finished runs."""
        config = self.results.config
        later = config.seeds * len(config.trained) * len(self.results.entries)
        self._make((self.results.sweep_run(*pair) for pair in pairs), later)
        return self._kept_losses(pairs)

    def _kept_losses(self, pairs: Sequence[tuple[Entry, float]]) -> dict[tuple[Entry, float], float]:
        kept = {pair: self.store.load(self.results.sweep_run(*pair)) for pair in pairs}
        return {pair: outcome.figures.get(BITS_PER_BYTE, inf) for pair, outcome in kept.items() if outcome}

    def _make(self, runs: Iterable[Run], later: int = 0) -> None:
        """Makes the runs without a stored outcome, the longest first; `later` more runs follow."""
        runs = list(dict.fromkeys(runs))
        outcomes = self.results.outcomes
        outcomes |= {run: kept for run in runs if (kept := self.store.load(run)) is not None}
        waiting = sorted((run for run in runs if run not in outcomes), key=training_cost, reverse=True)
        self.bar.expect(self.made + len(waiting) + later)
        for run, result in self.workers.map(waiting):
            self.made += 1
            self.bar.tick()
            if isinstance(result, Failure):
                self.failed += 1
                note(f"{self._describe(run)} failed: {result.reason}")
            else:
                outcomes[run] = result
        for run in runs:
            if run in outcomes and (reason := outcomes[run].diverged):
                note(f"{self._describe(run)} diverged: {reason}")

    def _describe(self, run: Run) -> str:
        forms = {form.spec: entry.label for entry in self.results.entries for form in (entry.scaled, entry.on_tasks)}
        return f"{forms[run.spec]}, {run.task}, learning rate {run.learning_rate:g}, seed {run.seed}"


def note(line: str) -> None:
    """Prints a line on stderr."""
    print(line, file=sys.stderr)


def training_cost(run: Run) -> float:
    """Returns the approximate FLOPs of a run's forward passes, which determine the order of the runs."""
    return run.tokens * run.spec.flops(0, run.context) / run.context


def seconds_per_token(spec: Decoder, config: LearnConfig) -> float:
    """Returns the training seconds per token of text on one thread."""
    with one_thread():
        trainer = Trainer(zoo.build(spec), TrainingConfig(1, 1e-3, config.batch, config.context))
        tokens = torch.randint(spec.vocab, (config.batch, config.context), generator=torch.Generator().manual_seed(0))
        return time_steps(trainer, lambda step: Batch(tokens, tokens)) / tokens.numel()


def _perform_and_keep(run: Run, store: RunStore, token_path: Path) -> Outcome:
    """Performs a run and stores its outcome, in any process."""
    outcome = perform(run, _opened(token_path) if run.task == TEXT else None)
    store.save(run, outcome)
    return outcome


@cache
def _opened(path: Path) -> TokenFile:
    return open_tokens(path)


def check_text(tokens: TokenFile, context: int) -> None:
    """Raises UsageError if a split of the text is shorter than the longest context of the evaluation."""
    longest = max(LENGTHS) * context
    for split in get_args(Split):
        if (count := len(getattr(tokens, split)) - 1) < longest:
            raise UsageError(
                f"{tokens.name}: {count:,} {split} tokens are too few for a context of {context:,}, which takes "
                f"{longest:,}: give a longer --text, or a shorter --context"
            )


def parse_tasks(text: str) -> tuple[str, ...]:
    """Parses tasks from "text,recall" or "all". Raises UsageError for an unknown task, or if there is none."""
    words = [word.strip().lower().replace("_", "-") for word in text.split(",") if word.strip()]
    if words == ["all"]:
        return ALL_TASKS
    for word in words:
        if word not in ALL_TASKS:
            raise unknown("task", word, ALL_TASKS)
    if not words:
        raise UsageError(f"--tasks names no task; known: {', '.join(ALL_TASKS)}")
    return tuple(dict.fromkeys(words))
