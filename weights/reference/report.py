"""The parity report: what was measured and whether it passes, as text of at most 80 columns, as JSON and as a plot."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count, pairwise, takewhile
from math import isnan, nan
from pathlib import Path
from textwrap import fill
from typing import Any

from weights.reference.layers import Part
from weights.reference.logits import Difference
from zoo.errors import NotAvailable, UsageError, require_package
from zoo.units import format_count

EQUAL = 1e-5  # of the largest logit, at least 1: float32 logits that are equal but for rounding
# What a recurrence computes may be small before it is normalised, and rounding then shows: token by token the reference
# itself is up to 4e-5 of the largest logit from its whole pass.
EQUAL_RECURRENT = 1e-4
MAX_MEAN_KL = 1e-3  # nats per token: bfloat16 distributions that are equal but for rounding
YARDSTICKS = 2  # the zoo's error in bfloat16 may be this many times the reference's own

FIGURES = {
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
# Field of the report -> the head of its column, the note below the tables, the label in the plot.
HEADS = {"logits": "zoo", "cached": "cached", "zoo_to_float32": "zoo, f32", "reference_to_float32": "ref, f32"}
NOTES = {
    "logits": "its logits from the reference's in {}, on the same weights and prompts.",
    "cached": "the zoo's through a cache, in chunks and single tokens, from its own in one forward pass.",
    "zoo_to_float32": "the zoo's in {} from the reference's in float32.",
    "reference_to_float32": "the reference's in {} from its own in float32, the yardstick.",
}
LABELS = {
    "logits": "zoo to reference",
    "cached": "zoo, cached to full",
    "zoo_to_float32": "zoo to reference in float32",
    "reference_to_float32": "reference to itself in float32",
}
FIRST_BUCKET, BUCKET_GROWTH = 16, 4  # positions of the first bucket, and how many times further each next one reaches


@dataclass(frozen=True)
class Check:
    """A value and the most that it may be. NaN never passes."""

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
class ParityReport:
    """How equal the zoo's model is to the reference on the same weights and prompts.

    `logits`: the zoo's from the reference's, in `dtype`. `cached`: the zoo's in chunks and single tokens through a
    cache, from its own in one forward pass. In bfloat16 also, from the reference in float32: `zoo_to_float32`, and
    `reference_to_float32`, which is the yardstick.

    In float32, a token for which a router chose other experts, or an indexer other keys (`rerouted` choices, in
    `logits`), is not counted, nor are the later tokens of its prompt; `parts` show whether rounding alone decided. In
    bfloat16 both sides round to other choices now and then, and a few such tokens dominate a mean: a model with routers
    or indexers is judged by its median token.
    """

    source: str
    parameters: int
    dtype: str
    prompts: tuple[str, ...]
    length: int  # tokens of each prompt
    seed: int
    window: int  # tokens of the widest, 0 without one
    streaming: bool
    ranks: int  # processes that divide the zoo's model
    reference: str
    logits: Difference
    cached: Difference
    zoo_to_float32: Difference | None
    reference_to_float32: Difference | None
    has_routers: bool
    has_indexers: bool
    is_recurrent: bool
    rerouted: int
    parts: tuple[Part, ...]

    @property
    def first(self) -> Part | None:
        """The first part, in order of computation, that differs by more than rounding on the reference's own input."""
        return next((part for part in self.parts if not part.passed), None)

    @property
    def checks(self) -> list[Check]:
        """What must pass."""
        exact, own = self.zoo_to_float32, self.reference_to_float32
        worst = max(self.parts, key=lambda part: part.error / part.bound)
        part = Check("largest error of one part", worst.error, worst.bound)
        if exact is None or own is None:
            bound = (EQUAL_RECURRENT if self.is_recurrent else EQUAL) * max(1.0, self.logits.scale)
            cached = Check("largest difference, cached to full", self.cached.largest, bound)
            return [Check("largest logit difference", self.logits.largest, bound), cached, part]
        average = "median" if self.has_routers or self.has_indexers else "mean"

        def check(what: str, side: Difference, figure: str, least: float = 0.0, factor: float = 1.0) -> Check:
            bound = factor * YARDSTICKS * getattr(own, figure)
            return Check(f"{average} {what}", getattr(side, figure), max(bound, least))  # NaN, in front, stays NaN

        return [
            check("logit difference to float32", exact, average),
            check("KL to float32", exact, f"kl_{average}"),
            # Between the two are both sides' rounding errors; on some models the reference's alone exceeds the limit.
            check("KL", self.logits, f"kl_{average}", MAX_MEAN_KL, YARDSTICKS),
            check("difference, cached to full", self.cached, average),
            part,
        ]

    @property
    def passed(self) -> bool:
        """Whether all checks pass."""
        return all(check.passed for check in self.checks)

    @property
    def sides(self) -> dict[str, Difference]:
        """The comparisons that were made, by field."""
        return {name: side for name in HEADS if (side := getattr(self, name)) is not None}

    def as_dict(self) -> dict[str, Any]:
        """Everything, in values that JSON has."""
        checks = [asdict(check) | {"passed": check.passed} for check in self.checks]
        first = None if self.first is None else asdict(self.first)
        return {**asdict(self), "passed": self.passed, "checks": checks, "first_divergent": first}

    def __str__(self) -> str:
        among = f", divided among {self.ranks} processes" if self.ranks > 1 else ""
        head = [
            f"{self.source}: {format_count(self.parameters)} parameters, {self.dtype}{among}",
            f"against {self.reference}",
            f"{_times(len(self.prompts), 'prompt')} of {self.length} tokens: {' and '.join(self.prompts)}",
        ]
        failed = [check for check in self.checks if not check.passed]
        verdict = f"{'FAIL' if failed else 'PASS'}: {'; '.join(map(str, failed or self.checks))}"
        if self.first is not None:
            verdict += f"; first in {self.first}"
        notes, tables = list(_notes(self)), [_figures(self), _positions(self)]
        return "\n\n".join([_filled(head), *tables, _filled(notes), _filled([verdict])])


def _figures(report: ParityReport) -> str:
    rows = [
        {"figure": label}
        | {name: (_share if figure in SHARES else _error)(getattr(side, figure)) for name, side in report.sides.items()}
        for figure, label in FIGURES.items()
    ]
    return _table(report, rows, "figure", "")


def _positions(report: ParityReport) -> str:
    buckets = takewhile(lambda end: end < report.length, (FIRST_BUCKET * BUCKET_GROWTH**i for i in count()))
    edges = {0, *buckets, min(report.window, report.length), report.length}  # an error in the window shows after it
    rows = []
    for start, end in pairwise(sorted(edges)):
        rows.append({"position": f"{start}-{end - 1}" if end - start > 1 else str(start)})
        for name, side in report.sides.items():
            errors = [each.largest for each in side.by_position[start:end] if not isnan(each.largest)]
            rows[-1][name] = _error(max(errors, default=nan))
    return _table(report, rows, "position", "largest, at position")


def _table(report: ParityReport, rows: list[dict[str, str]], key: str, head: str) -> str:
    """A column `key`, and one for each side, aligned to the right."""
    from zoo.cli.tables import Column, render  # here, since `import weights` must not import a command line's packages

    width = max(map(len, FIGURES.values()))
    columns = [Column(name, f"{HEADS[name]:>9}", lambda cell: f"{cell:>9}") for name in report.sides]
    return render(rows, [Column(key, f"{head:<{width}}"), *columns])


def _notes(report: ParityReport) -> Iterator[str]:
    yield from (f"{HEADS[name]}: {NOTES[name].format(report.dtype)}" for name in report.sides)
    yield "KL: divergence from the reference's distribution of the next token, in nats per token."
    bad = [part for part in report.parts if not part.passed]
    parts = f"Each of {len(report.parts)} parts, on the input of the reference's own"
    if bad:
        first, verb = bad[0], "differs" if len(bad) == 1 else "differ"
        errors = f"{_error(first.error)} of a token's vector, where rounding explains {_error(first.bound)}"
        yield f"{parts}: {len(bad)} {verb} by more than rounding, the first being {first} ({errors})."
    else:
        worst = max(report.parts, key=lambda part: part.error / part.bound)
        yield f"{parts}: all equal but for rounding, most in {worst} ({_error(worst.error)} of a vector)."
    if report.rerouted:
        left = len(report.prompts) * report.length - report.logits.tokens
        uncounted = f"; {left} tokens that depend on that are not counted" if left else ""
        choosing = {"Routers": ("experts", report.has_routers), "Indexers": ("keys", report.has_indexers)}
        who = " and ".join(name for name, (_, there) in choosing.items() if there).capitalize()
        what = " or ".join(name for name, there in choosing.values() if there)
        yield f"{who} chose other {what} {_times(report.rerouted, 'time')}{uncounted}."
    if ties := sum(part.ties for part in report.parts):
        yield f"On the same input, rounding chose otherwise {_times(ties, 'time')}."
    if report.window >= report.length:
        yield f"No token has left the window of {report.window}: --tokens {2 * report.window} would show more."


def _filled(lines: list[str]) -> str:
    return "\n".join(fill(line, 80, subsequent_indent="  ", break_on_hyphens=False) for line in lines)


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count > 1)}"


def _error(value: float) -> str:
    return "-" if isnan(value) else "0" if value == 0 else f"{value:.1e}"


def _share(value: float) -> str:
    return "-" if isnan(value) else f"{100 * value:.2f}%" if value < 1 else "100%"


def check_plot(file: Path) -> None:
    """Raise, before anything is run, what `write_plot` would raise for this file."""
    if file.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot must be a file that ends in .png or .svg, got {file}")
    if not file.parent.is_dir():
        raise NotAvailable(f"cannot write {file}: there is no folder {file.parent}")
    require_package("matplotlib", "plot")


def write_plot(report: ParityReport, file: Path) -> None:
    """Plot the largest logit difference at each position, over all prompts, to a .png or .svg file."""
    require_package("matplotlib", "plot")
    figure = require_package("matplotlib.figure", "plot").Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, side in report.sides.items():
        # A logarithmic axis cannot show an error of zero: NaN interrupts the line.
        errors = [each.largest if each.largest > 0 else nan for each in side.by_position]
        axes.plot(range(len(errors)), errors, linewidth=1, label=LABELS[name])
    if report.reference_to_float32 is None:
        axes.axhline(report.checks[0].bound, color="black", linestyle="--", linewidth=0.8, label="bound")
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
