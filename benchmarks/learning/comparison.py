"""The comparison: its runs, their order, and their outcomes.

Every model is trained at its own learning rate, which a sweep chose on the tuning text. Then each seed trains every
model on the same data in the same order. Runs that are kept are not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from math import inf
from pathlib import Path
from typing import get_args

from benchmarks.learning.entries import Entry
from benchmarks.learning.runs import TEXT, Outcome, Run, RunStore
from benchmarks.learning.sweep import Sweep, check_trained, choose_rates
from benchmarks.learning.tasks import TASKS
from benchmarks.learning.training import BITS_PER_BYTE, LENGTHS, perform
from benchmarks.learning.workers import Failure, Workers
from zoo.errors import UsageError, unknown
from zoo.training.text.tokens import Split, TokenFile, open_tokens

LENGTH = "length"  # text beyond the training context
ALL_TASKS = (TEXT, LENGTH, *TASKS)
SWEEP_SHARE = 0.5  # steps of a sweep run, as a share of the steps of a final run
# The learning rate of synthetic tasks. A model learns recall all at once, after some hundred steps at a constant rate.
# At half or twice this rate, or under a cosine, it learns recall later or not at all.
TASK_RATE = 4e-3
SWEEP_SEED = 10_000  # no final run has this seed, so that a lucky seed does not choose its own rate
MIN_STEPS = 2


@dataclass(frozen=True)
class LearnConfig:
    """The training of a comparison.

    `tasks` of ALL_TASKS; `steps` of text in batches of `batch` sequences of `context` tokens; `seeds` seeds. `rates`:
    the first learning rates of a sweep. `fixed` gives the rate of a model without a sweep. `task_rate`: the rate of
    synthetic tasks.
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
        """The tasks that are trained. The length task is measured on the models trained on text."""
        return tuple(dict.fromkeys(TEXT if task == LENGTH else task for task in self.tasks))

    def run(self, entry: Entry, task: str, rate: float, seed: int, data: str) -> Run:
        """Returns the run of a task of `trained`."""
        return self.text_run(entry, rate, seed, data) if task == TEXT else self.task_run(entry, task, seed)

    def text_run(self, entry: Entry, rate: float, seed: int, data: str) -> Run:
        """Returns a run on text."""
        return Run(entry.spec, TEXT, rate, seed, self.steps, self.batch, self.context, data)

    def sweep_run(self, entry: Entry, rate: float, data: str) -> Run:
        """Returns a shorter run on text, evaluated on the tuning text."""
        steps = max(MIN_STEPS, round(self.steps * SWEEP_SHARE))
        return replace(self.text_run(entry, rate, SWEEP_SEED, data), steps=steps, split="tuning")

    def task_run(self, entry: Entry, name: str, seed: int) -> Run:
        """Returns a run of the model's two-layer form on a synthetic task."""
        task = TASKS[name]
        context = task.length(max(task.sizes))
        return Run(entry.on_tasks.spec, name, self.task_rate, seed, task.steps, task.batch(max(task.sizes)), context)


@dataclass
class Results:
    """The results of a comparison: sweeps (None if the rate was given), learning rates, and outcomes."""

    entries: Sequence[Entry]
    config: LearnConfig
    tokens: TokenFile
    sweeps: dict[Entry, Sweep | None] = field(default_factory=dict)
    rates: dict[Entry, float] = field(default_factory=dict)
    outcomes: dict[Run, Outcome] = field(default_factory=dict)

    def run(self, entry: Entry, task: str, seed: int) -> Run:
        """Returns the run of a model, a task of `LearnConfig.trained` and a seed."""
        return self.config.run(entry, task, self.rates[entry], seed, self.tokens.hash)

    def figures(self, entry: Entry, task: str, figure: str) -> dict[int, float]:
        """Returns {seed: figure} for the runs that ended with figures."""
        ended = {seed: self.outcomes.get(self.run(entry, task, seed)) for seed in range(self.config.seeds)}
        return {seed: outcome.figures[figure] for seed, outcome in ended.items() if outcome and outcome.figures}


class Comparison:
    """Makes the runs of a comparison that are not kept yet.

    `failed` gets a line for each run that fails, `note` a line for each that diverges. `tick` is called after each run.
    `expect` gets the total number of runs, which grows when a sweep is widened.
    """

    def __init__(
        self,
        results: Results,
        store: RunStore,
        workers: Workers[Run, Outcome],
        failed: Callable[[str], None],
        note: Callable[[str], None],
        tick: Callable[[], None] = lambda: None,
        expect: Callable[[int], None] = lambda runs: None,
    ) -> None:
        self.results, self.store, self.workers = results, store, workers
        self.failed, self.note, self.tick, self.expect = failed, note, tick, expect
        self.made = 0

    def finish(self) -> None:
        """Chooses learning rates, then trains every model on every task with every seed.

        Raises CheckFailed for a model that no learning rate can train.
        """
        results, config = self.results, self.results.config
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

    def _tuning_losses(self, pairs: Sequence[tuple[Entry, float]]) -> Mapping[tuple[Entry, float], float]:
        results = self.results
        runs = {pair: results.config.sweep_run(*pair, results.tokens.hash) for pair in pairs}
        self._make(runs.values(), results.config.seeds * len(results.config.trained) * len(results.entries))
        outcomes = {pair: results.outcomes.get(run) for pair, run in runs.items()}
        return {pair: outcome.figures.get(BITS_PER_BYTE, inf) for pair, outcome in outcomes.items() if outcome}

    def _make(self, runs: Iterable[Run], later: int = 0) -> None:
        """Makes the runs that are not kept, the longest first; `later` more runs follow."""
        runs = list(dict.fromkeys(runs))
        outcomes = self.results.outcomes
        outcomes |= {run: kept for run in runs if (kept := self.store.load(run)) is not None}
        waiting = sorted((run for run in runs if run not in outcomes), key=training_cost, reverse=True)
        self.expect(self.made + len(waiting) + later)
        for run, result in self.workers.map(waiting):
            self.made += 1
            self.tick()
            if isinstance(result, Failure):
                self.failed(f"{self.describe(run)} failed: {result.reason}")
            else:
                outcomes[run] = result
        for run in runs:
            if run in outcomes and (reason := outcomes[run].diverged):
                self.note(f"{self.describe(run)} diverged: {reason}")

    def describe(self, run: Run) -> str:
        """Returns a run in a few words."""
        forms = {form.spec: entry.label for entry in self.results.entries for form in (entry.scaled, entry.on_tasks)}
        label = forms.get(run.spec, "a model")
        return f"{label}, {run.task}, learning rate {run.learning_rate:g}, seed {run.seed}"


def training_cost(run: Run) -> float:
    """Returns the approximate FLOPs of a run's forward passes, which determine the order of the runs."""
    return run.tokens * run.spec.flops(0, run.context) / run.context


def runner(folder: Path, token_path: Path) -> Callable[[Run], Outcome]:
    """Returns a function that makes and keeps one run, in any process."""
    return partial(_perform_and_keep, folder=folder, token_path=token_path)


def _perform_and_keep(run: Run, folder: Path, token_path: Path) -> Outcome:
    outcome = perform(run, _opened(token_path) if run.task == TEXT else None)
    RunStore(folder).save(run, outcome)
    return outcome


@cache
def _opened(path: Path) -> TokenFile:
    return open_tokens(path)


def check_text(tokens: TokenFile, context: int) -> None:
    """Raises UsageError if a split of the text is shorter than the longest evaluated context."""
    longest = max(LENGTHS) * context
    for split in get_args(Split):
        if (count := len(getattr(tokens, split)) - 1) < longest:
            raise UsageError(
                f"{tokens.name}: {count:,} {split} tokens are too few for a context of {context:,}, which takes "
                f"{longest:,}: give a longer --text, or a shorter --context"
            )


def parse_tasks(text: str) -> tuple[str, ...]:
    """Parses tasks from "text,recall" or "all". Raises UsageError for an unknown task, or none."""
    words = [word.strip().lower().replace("_", "-") for word in text.split(",") if word.strip()]
    if words == ["all"]:
        return ALL_TASKS
    for word in words:
        if word not in ALL_TASKS:
            raise unknown("task", word, ALL_TASKS)
    if not words:
        raise UsageError(f"--tasks names no task; known: {', '.join(ALL_TASKS)}")
    return tuple(dict.fromkeys(words))
