"""The rows of a comparison: each model, each figure with its interval, and each difference from the first model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from statistics import fmean, median
from typing import Any

import torch

from benchmarks.analytic.models import about
from benchmarks.learning.comparison import LENGTH, Entry, LearnConfig, Results
from benchmarks.learning.intervals import in_words, mean_interval, paired_differences
from benchmarks.learning.runs import TEXT
from benchmarks.learning.tasks import TASKS
from benchmarks.learning.training import BITS_PER_BYTE, LENGTHS, at_size, beyond
from zoo.cli.tables import Row
from zoo.model.decoder import Decoder
from zoo.model.layer_pattern import fold, labels
from zoo.training.text.tokens import TokenFile

CACHE = torch.bfloat16
BITS, SHARE = "bits per byte", "accuracy"


@dataclass(frozen=True)
class Measure:
    """A figure by which models are compared.

    `task`: a task of the comparison. `trained`: the task on which its runs are trained. `figure`: its name in the
    outcomes of runs. `size`: the size of the task (for length: a multiple of the training context).
    """

    task: str
    trained: str
    figure: str
    unit: str
    size: int | None = None
    chance: float | None = None

    def row(self, tokens: TokenFile) -> Row:
        """Returns the columns of the measure: its name in words, and the text on which it is measured, if any."""
        name = BITS if self.size is None else f"{self.task}, {self.size} {size_word(self.task)}"
        data = (tokens.name, tokens.hash) if self.trained == TEXT else (None, None)
        row = {"task": self.task, "size": self.size, "measure": name, "unit": self.unit}
        return row | {"data": data[0], "data_hash": data[1]}


def size_word(task: str) -> str:
    """Returns the unit of a task's sizes."""
    return "x context" if task == LENGTH else TASKS[task].size_word


def measures(config: LearnConfig) -> list[Measure]:
    """Returns the measures of the tasks of a comparison."""
    found = []
    for task in config.tasks:
        if task == TEXT:
            found.append(Measure(task, TEXT, BITS_PER_BYTE, BITS))
        elif task == LENGTH:
            found += [Measure(task, TEXT, beyond(times), BITS, times) for times in LENGTHS]
        else:
            chance = TASKS[task].chance
            found += [Measure(task, task, at_size(size), SHARE, size, chance) for size in TASKS[task].sizes]
    return found


def model_rows(results: Results) -> list[Row]:
    """Returns a row for each model: the scaled-down model and its costs, its learning rate and sweep, and all runs."""
    return [_model_row(entry, results) for entry in results.entries]


def figure_rows(results: Results) -> list[Row]:
    """Returns a row for each model and each measure with a size, if at least one run has ended."""
    rows = []
    for measure in measures(results.config):
        for entry in results.entries:
            values = results.figures(entry, measure.trained, measure.figure)
            if values and measure.size is not None:  # bits per byte are in the rows of the models
                rows.append(
                    {
                        "table": "learn_figures",
                        **about(entry.model),
                        **measure.row(results.tokens),
                        **_spread(list(values.values())),
                        "chance": measure.chance,
                        "samples": [{"seed": seed, "value": value} for seed, value in values.items()],
                    }
                )
    return rows


def difference_rows(results: Results) -> list[Row]:
    """Returns a row for each measure and model after the first: differences from the first model at equal seeds.

    Holm's correction covers all models of a measure. A model needs at least two seeds in common with the first model.
    """
    rows = []
    first, *others = results.entries
    for measure in measures(results.config):
        own = results.figures(first, measure.trained, measure.figure)
        pairs = dict[Entry, dict[int, float]]()
        for entry in others:
            theirs = results.figures(entry, measure.trained, measure.figure)
            if len(both := own.keys() & theirs.keys()) >= 2:
                pairs[entry] = {seed: theirs[seed] - own[seed] for seed in sorted(both)}
        found = paired_differences([list(each.values()) for each in pairs.values()])
        shown = (".2f", "bits", 1.0) if measure.unit == BITS else (".0f", "points", 100.0)
        for (entry, samples), difference in zip(pairs.items(), found, strict=True):
            rows.append(
                {
                    "table": "learn_differences",
                    **about(entry.model, first.model),
                    **measure.row(results.tokens),
                    **difference.interval._asdict(),
                    "level": difference.level,
                    "p": difference.p,
                    "compared": len(pairs),
                    "words": in_words(difference, *shown),
                    "samples": [{"seed": seed, "value": value} for seed, value in samples.items()],
                }
            )
    return rows


def _model_row(entry: Entry, results: Results) -> Row:
    config, spec = results.config, entry.spec
    fixed, per_token = spec.kv_growth(CACHE)
    sweep = results.sweeps.get(entry)
    runs = _runs(entry, results)
    speeds = [run["tokens"] / run["seconds"] for run in runs if run["seconds"] and run["task"] == config.trained[0]]
    bits = list(results.figures(entry, TEXT, BITS_PER_BYTE).values()) if TEXT in config.trained else []
    return {
        "table": "learn",
        **about(entry.model),
        "match": entry.scaled.match,
        "budgets": [asdict(budget) for budget in entry.scaled.budgets],
        "layers": len(spec.layers),
        "dim": spec.dim,
        "layer_pattern": layer_pattern(spec),
        "params": spec.params(),
        "active_params": spec.active_params(),
        "context": config.context,
        "kv_fixed_bytes": fixed,
        "kv_bytes_per_token": per_token,
        "kv_bytes": spec.kv_bytes(config.context, dtype=CACHE),
        "flops_per_token": spec.flops(0, config.context) / config.context,
        "tokens": config.tokens,
        "batch": config.batch,
        "seeds": config.seeds,
        "learning_rate": results.rates[entry],
        "sweep": [
            {"learning_rate": rate, "bits_per_byte": None if loss == inf else loss}
            for rate, loss in (sweep.tried if sweep else ())
        ],
        "sweep_edge": sweep.at_edge if sweep else None,
        **_spread(bits, (BITS_PER_BYTE, f"{BITS_PER_BYTE}_low", f"{BITS_PER_BYTE}_high")),
        "tokens_per_s": median(speeds) if speeds else None,
        "data": results.tokens.name,
        "data_hash": results.tokens.hash,
        "code_hash": results.run(entry, config.trained[0], 0).code,
        "runs": runs,
    }


def layer_pattern(spec: Decoder) -> str:
    """Returns the kinds of a model's layers in order, with repetitions folded."""
    names = dict(zip(dict.fromkeys(spec.layers), labels(spec.layers), strict=True))
    return fold([names[layer] for layer in spec.layers])


def _runs(entry: Entry, results: Results) -> list[dict[str, Any]]:
    """Returns the finished runs of a model, with their figures and curves."""
    wanted = (results.run(entry, task, seed) for task in results.config.trained for seed in range(results.config.seeds))
    return [
        {
            "task": run.task,
            "seed": run.seed,
            "name": run.name,
            "tokens": outcome.tokens,
            "seconds": outcome.seconds,
            "figures": outcome.figures,
            "diverged": outcome.diverged,
            "curve": [asdict(point) for point in outcome.curve],
        }
        for run in wanted
        if (outcome := results.outcomes.get(run))
    ]


def _spread(values: Sequence[float], keys: Sequence[str] = ("mean", "low", "high")) -> Row:
    """Returns a mean with the bounds of its 95 % interval; None for bounds of fewer than two values."""
    found = mean_interval(values) if len(values) > 1 else (fmean(values) if values else None, None, None)
    return dict(zip(keys, found, strict=True))
