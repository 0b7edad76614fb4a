"""The parity report: measured differences and whether they pass, as text of at most 80 columns, as JSON and as a
plot."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count, pairwise, takewhile
from math import inf, isnan, nan
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import torch

from weights.reference.differences import Difference, Part
from zoo.core.float32 import BOUND
from zoo.errors import NotAvailable, UsageError, require_package
from zoo.units import format_count

MAX_RATIO = 2  # the zoo's rounding error may be this many times the reference's

FIGURES = {
    "rms": "RMS error, of RMS logit",
    "largest": "largest logit difference",
    "mean": "mean",
    "median": "median token's mean",
    "p999": "99.9th percentile",
    "kl_mean": "mean KL",
    "kl_median": "median KL",
    "kl_max": "largest KL",
    "top1": "same most likely token",
    "top10": "shared top-10 tokens",
}
SHARES = ("top1", "top10")
SHORT = {"float32": "f32", "bfloat16": "bf16"}
FIRST_BUCKET, BUCKET_GROWTH = 16, 4  # positions in the first bucket; growth of the end from bucket to bucket


@dataclass(frozen=True)
class Check:
    """A value and its upper bound. NaN never passes."""

    name: str
    value: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the value is within its bound."""
        return self.value <= self.bound

    def __str__(self) -> str:
        return f"{self.name} {_error(self.value)}, bound {_error(self.bound)}"


@dataclass(frozen=True)
class Rounded:
    """Differences of logits in a narrower dtype from the reference's logits in float64. `zoo` ran in one forward pass,
    and `cached` is the zoo through a cache. All three runs used the experts and keys that were chosen in float64."""

    zoo: Difference
    cached: Difference
    reference: Difference


class Side(NamedTuple):
    """One comparison: the head of its column, its label in the plot, and the difference."""

    head: str
    label: str
    difference: Difference


@dataclass(frozen=True)
class ParityReport:
    """The difference between the zoo's model and the reference on the same weights and prompts.

    `exact`: the difference of the logits in float64. `exact_cached`: the same, with the zoo run through a cache in
    chunks and single tokens. `parts`: each part by itself, in float64. `rounded`: the differences in `dtype`, or None
    if `dtype` is float64.
    """

    source: str
    parameters: int
    dtype: str
    prompts: tuple[str, ...]
    length: int  # tokens of each prompt
    seed: int
    window: int  # tokens of the widest window, 0 if there is none
    streaming: bool
    ranks: int  # processes that divide the zoo's model
    reference: str
    has_choices: bool  # whether the model chooses experts or keys
    exact: Difference
    exact_cached: Difference
    parts: tuple[Part, ...]
    rounded: Rounded | None

    def _prompts(self) -> str:
        text = [name for name in self.prompts if name == "text"]
        last = self.seed + len(self.prompts) - len(text) - 1
        return " and ".join([*text, f"random ids of seeds {self.seed} to {last}"])

    @property
    def first(self) -> Part | None:
        """The first part, in order of computation, that differs by more than rounding on the reference's own input."""
        return next((part for part in self.parts if not part.passed), None)

    @property
    def checks(self) -> list[Check]:
        """The checks that must pass. In float64 all differences have one bound. In `dtype` the zoo's rounding errors
        may be twice the reference's, which counts as at least the machine epsilon of the dtype."""
        checks = [
            Check("largest difference in float64", self.exact.relative, BOUND),
            Check("through a cache", self.exact_cached.relative, BOUND),
            Check("in one part", max(self.parts, key=lambda part: _nan_last(part.error)).error, BOUND),
        ]
        if self.rounded is not None:
            unit = torch.finfo(getattr(torch, self.dtype)).eps
            most = MAX_RATIO * max(self.rounded.reference.rms, unit)
            checks.append(Check(f"RMS error in {self.dtype}", self.rounded.zoo.rms, most))
            checks.append(Check("RMS error through a cache", self.rounded.cached.rms, most))
        return checks

    @property
    def passed(self) -> bool:
        """Whether all checks pass."""
        return all(check.passed for check in self.checks)

    @property
    def sides(self) -> list[Side]:
        """The comparisons that were made, in the order of their columns."""
        sides = [
            Side("zoo, f64", "zoo, float64", self.exact),
            Side("cached", "zoo through a cache, float64", self.exact_cached),
        ]
        if self.rounded is not None:
            sides += [
                Side(f"zoo, {SHORT[self.dtype]}", f"zoo, {self.dtype}", self.rounded.zoo),
                Side("cached", f"zoo through a cache, {self.dtype}", self.rounded.cached),
                Side(f"ref, {SHORT[self.dtype]}", f"reference, {self.dtype}", self.rounded.reference),
            ]
        return sides

    def as_dict(self) -> dict[str, Any]:
        """Returns the whole report as JSON values."""
        checks = [asdict(check) | {"passed": check.passed} for check in self.checks]
        first = None if self.first is None else asdict(self.first)
        return {**asdict(self), "passed": self.passed, "checks": checks, "first_divergent": first}

    def __str__(self) -> str:
        among = f", divided among {self.ranks} processes" if self.ranks > 1 else ""
        _, cached, part = (_error(check.value) for check in self.checks[:3])
        others = f"{cached} through a cache, {part} in one part; bound {BOUND:.0e}"
        head = [
            f"float64: largest difference {_error(self.exact.relative)} of the largest logit ({others})",
            f"{self.source}: {format_count(self.parameters)} parameters, {self.dtype}{among}",
            f"against {self.reference}",
            f"{len(self.prompts)} prompts of {self.length} tokens: {self._prompts()}",
        ]
        failed = [check for check in self.checks if not check.passed]
        verdict = f"{'FAIL' if failed else 'PASS'}: {'; '.join(map(str, failed or self.checks))}"
        if self.first is not None:
            verdict += f"; first in {self.first}"
        notes, tables = list(_notes(self)), [_figures(self), _positions(self)]
        return "\n\n".join([_filled(head), *tables, _filled(notes), _filled([verdict])])


def _nan_last(value: float) -> float:
    """Returns a sort key by which NaN is the largest."""
    return inf if isnan(value) else value


def _figures(report: ParityReport) -> str:
    rows = [
        [label, *((_share if figure in SHARES else _error)(getattr(side.difference, figure)) for side in report.sides)]
        for figure, label in FIGURES.items()
    ]
    return _table(report, "", rows)


def _positions(report: ParityReport) -> str:
    buckets = takewhile(lambda end: end < report.length, (FIRST_BUCKET * BUCKET_GROWTH**i for i in count()))
    edges = {0, *buckets, min(report.window, report.length), report.length}  # a wrong window shows later only
    rows = []
    for start, end in pairwise(sorted(edges)):
        positions = (side.difference.by_position[start:end] for side in report.sides)
        largest = (max((each.largest for each in errors), key=_nan_last) for errors in positions)
        rows.append([f"{start}-{end - 1}" if end - start > 1 else str(start), *map(_error, largest)])
    return _table(report, "largest, at position", rows)


def _table(report: ParityReport, title: str, rows: list[list[str]]) -> str:
    """Formats a column of names under a title, and one column for each side, aligned to the right."""
    width = max(map(len, FIGURES.values()))
    heads = [title, *(side.head for side in report.sides)]
    lines = [heads, ["-" * width, *["-" * 9] * len(report.sides)], *rows]
    return "\n".join("  ".join([f"{first:<{width}}", *(f"{cell:>9}" for cell in rest)]) for first, *rest in lines)


def _notes(report: ParityReport) -> Iterator[str]:
    yield "All columns are differences from the reference's logits in float64."
    yield "cached: the zoo through a cache, in chunks and single tokens."
    if report.rounded is not None and report.has_choices:
        yield f"In {report.dtype} both sides choose the experts and keys that were chosen in float64."
    yield "KL: divergence from the exact distribution of the next token, in nats per token."
    bad = [part for part in report.parts if not part.passed]
    parts = f"Each of {len(report.parts)} parts, on the reference's own input in float64"
    if bad:
        verb = "differs" if len(bad) == 1 else "differ"
        yield f"{parts}: {len(bad)} {verb}, the first being {bad[0]} ({_error(bad[0].error)} of its largest element)."
    else:
        worst = max(report.parts, key=lambda part: _nan_last(part.error))
        yield f"{parts}: all equal but for rounding, most in {worst} ({_error(worst.error)} of its largest element)."
    if report.window >= report.length:
        yield f"No token has left the window of {report.window}: --tokens {2 * report.window} would show more."


def _filled(lines: list[str]) -> str:
    return "\n".join(fill(line, 80, subsequent_indent="  ", break_on_hyphens=False) for line in lines)


def _error(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _share(value: float) -> str:
    return "-" if isnan(value) else f"{100 * value:.2f}%" if value < 1 else "100%"


def check_plot(file: Path) -> None:
    """Raises, before anything is run, the errors that `write_plot` would raise for this file."""
    if file.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot must be a file that ends in .png or .svg, got {file}")
    if not file.parent.is_dir():
        raise NotAvailable(f"cannot write {file}: there is no folder {file.parent}")
    require_package("matplotlib", "plot")


def write_plot(report: ParityReport, file: Path) -> None:
    """Plots the largest logit difference at each position, over all prompts, to a .png or .svg file."""
    require_package("matplotlib", "plot")
    figure = require_package("matplotlib.figure", "plot").Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for side in report.sides:
        # A logarithmic axis cannot show an error of zero: NaN interrupts the line.
        errors = [each.largest if each.largest > 0 else nan for each in side.difference.by_position]
        axes.plot(range(len(errors)), errors, linewidth=1, label=side.label)
    axes.axhline(BOUND * report.exact.scale, color="black", linestyle="--", linewidth=0.8, label="bound in float64")
    if 0 < report.window < report.length:
        axes.axvline(report.window, color="gray", linestyle=":", linewidth=0.8, label=f"window of {report.window}")
    axes.set(yscale="log", xlabel="position", ylabel="largest logit difference", xlim=(0, report.length - 1))
    axes.set_title(f"{Path(report.source).name}, {report.dtype}")
    axes.legend(fontsize="small")
    part = file.with_name(f"{file.stem}.part{file.suffix}")
    try:
        figure.savefig(part, dpi=150)
        part.replace(file)
    except OSError as error:
        raise NotAvailable(f"cannot write {file}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
