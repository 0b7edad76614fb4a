"""Learning of models at an equal budget."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import options
from benchmarks.learning.comparison import (
    TASK_RATE,
    Comparison,
    Entry,
    LearnConfig,
    Results,
    check_text,
    parse_tasks,
    small_models,
)
from benchmarks.learning.runs import RunStore
from benchmarks.learning.sweep import DEFAULT_RATES, parse_rates
from benchmarks.learning.tables import tables
from benchmarks.learning.workers import available_cores
from benchmarks.measure.environment import CPU, recorded
from benchmarks.output.report import Report
from zoo.cli.runner import Imports
from zoo.errors import CheckFailed, UsageError, require_package
from zoo.new_files import write_file
from zoo.training.text.data import read_text, standard_library
from zoo.training.text.tokenizers import ByteTokenizer
from zoo.training.text.tokens import TokenFile, token_file

Match = StrEnum("Match", ["params", "active", "flops", "kv"])  # the quantity that scaled-down models share
FOLDER = Path("learning")
COMMITTED_RATES = Path(__file__).parents[1] / "data" / "learning_rates.json"
QUICK = ("llama3", "olmo2", "gemma3", "deepseek-v3")  # plain; other norms; windows; latents and experts
# Families of "The Big LLM Architecture Comparison". All are compared with the first, which is the plainest.
DEFAULT = ("llama3", "deepseek-v3", "gemma3", "gpt-oss", "mistral3", "olmo2", "qwen3", "smollm3")
TOKENS, QUICK_TOKENS = 600_000, 120_000
SEEDS, SWAP_SEEDS = 3, 5


@dataclass(frozen=True)
class ModelOptions:
    """The models of a comparison, and how they are scaled down."""

    names: Annotated[
        options.Strings,
        typer.Argument(
            help="Presets, hub ids, families (smallest sizes) or folders with a config.json. Default: eight families."
        ),
    ] = None
    swap: Annotated[
        options.Strings,
        typer.Option(
            metavar="CHANGE",
            help="Also train each model with this change: 'GQA(window=32)', norm=olmo (repeatable). Join several "
            "changes of one model with ;",
        ),
    ] = None
    params: Annotated[
        int, options.count_option(help="Number of parameters of each scaled-down model: 200k, 2M. [200k]")
    ] = 200_000
    match: Annotated[Match, typer.Option(help="Quantity that is the same for all scaled-down models.")] = Match.params
    context: Annotated[int, options.tokens_option(help="Tokens of each training sequence.")] = 256
    ignore_field: options.IgnoreField = None
    import_: Imports = None

    def entries(self, quick: bool) -> list[Entry]:
        """Returns the scaled-down models. Raises UsageError for swaps without names."""
        if self.swap and not self.names:
            raise UsageError("--swap changes the models that are named: name one, as in llama3 --swap 'GQA(window=32)'")
        names = self.names or (QUICK if quick else DEFAULT)
        match: Any = self.match.value  # one of the words of zoo.swaps.scaled.Match
        return small_models(names, self.swap or [], self.params, match, self.context, self.ignore_field or [])


@dataclass(frozen=True)
class TrainingOptions:
    """The training data and the training budget."""

    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="TASKS",
            help="Tasks, separated by commas: text, length, recall, copying, selective-copying, induction, far-recall; "
            "or all. [text,recall; with --quick: text]",
        ),
    ] = None
    tokens: Annotated[int | None, options.count_option(help="Text tokens per run. [0.6M; with --quick: 0.12M]")] = None
    batch: Annotated[int, typer.Option(min=1, help="Sequences per step.")] = 8
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Seeds per model. [3; with --swap: 5]", show_default=False)
    ] = None
    rates: Annotated[
        str | None, typer.Option(metavar="RATES", help="Learning rates that a sweep tries first. [8e-3,16e-3,32e-3]")
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option(metavar="RATE", help="Learning rate of every model, without a sweep.")
    ] = None
    quick: Annotated[
        bool,
        options.flag("Train four models on fewer tokens, with stored learning rates: about two minutes.", "--quick"),
    ] = False

    def config(self, models: ModelOptions) -> LearnConfig:
        """Returns the config of the training runs.

        Raises UsageError for a budget below two steps, and for rates that contradict each other.
        """
        if self.rates is not None and self.learning_rate is not None:
            raise UsageError("give either --rates for a sweep or --learning-rate without a sweep")
        tokens = self.tokens or (QUICK_TOKENS if self.quick else TOKENS)
        steps = tokens // (self.batch * models.context)
        if steps < 2:
            raise UsageError(f"--tokens {tokens:,} is less than two steps of {self.batch} x {models.context} tokens")
        return LearnConfig(
            parse_tasks(("text" if self.quick else "text,recall") if self.tasks is None else self.tasks),
            steps,
            self.seeds or (SWAP_SEEDS if models.swap and not self.quick else SEEDS),
            models.context,
            self.batch,
            parse_rates(self.rates) if self.rates else DEFAULT_RATES,
            self._fixed(),
            task_rate=self.learning_rate or TASK_RATE,
        )

    def _fixed(self) -> Callable[[Entry], float] | None:
        if (rate := self.learning_rate) is not None:
            parse_rates(str(rate))
            return lambda entry: rate
        return committed_rate if self.quick and self.rates is None else None


@dataclass(frozen=True)
class FileOptions:
    """The files that are read, the folders that are written, and the number of processes."""

    text: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Text file or folder to train on. [Python's standard library]")
    ] = None
    runs: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder that keeps each finished run.")] = FOLDER
    curves: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for the learning curves, as PNG and SVG.")
    ] = None
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Number of runs at a time. [one per core]")
    ] = None

    def tokens(self) -> TokenFile:
        """Returns the text as a token file, which is written to the folder of the runs."""
        corpus = standard_library() if self.text is None else read_text(self.text, leave_out=self.runs)
        return token_file(self.runs, corpus, ByteTokenizer())


def command(*, models: ModelOptions, training: TrainingOptions, files: FileOptions, report: Report) -> None:
    """Training of small models at an equal budget.

    Each model is trained on text (bits per byte) and on synthetic tasks (accuracy), with the same data in the same
    order and its own learning rate. Intervals are over seeds. Each finished run is kept: after Ctrl-C, the same command
    continues.

    \b
    python -m benchmarks learn --quick
    python -m benchmarks learn llama3 --swap 'GQA(window=32)' --swap rope=NoPE --tasks text,recall,length
    """
    require_package("scipy", "train")
    if files.curves is not None:
        for package in ("altair", "vl_convert"):
            require_package(package, "gallery")
    config, entries, store = training.config(models), models.entries(training.quick), RunStore(files.runs)
    tokens, jobs = files.tokens(), files.jobs or available_cores()
    check_text(tokens, config.context)
    results = Results(entries, config, tokens)
    comparison = Comparison(results, store, jobs)
    with recorded(report, CPU):
        comparison.finish()
        report.add(*tables(results))
        if files.curves is not None:
            from benchmarks.gallery.learning_curves import pictures  # imports the packages above

            for name, image in pictures(report.rows).items():
                write_file(files.curves / name, image)
        if comparison.failed:
            raise CheckFailed(f"{comparison.failed} of the runs failed; the same command tries them again")


def committed_rate(entry: Entry) -> float:
    """Returns a model's learning rate in COMMITTED_RATES, or the default rate for a model that is not in it."""
    document = json.loads(COMMITTED_RATES.read_text(encoding="utf-8"))
    rate: float = document["rates"].get(entry.model.name, document["default"])
    return rate
