"""The parity report as text of at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import isnan
from textwrap import fill
from typing import TYPE_CHECKING, Any

from weights.reference.logits import Difference, Position
from zoo.cli.tables import Column, render
from zoo.units import format_count

if TYPE_CHECKING:
    from weights.reference.report import Check, Report

FIGURES = {
    "largest": "largest logit difference",
    "mean": "mean",
    "median": "median token's mean",
    "p999": "99.9th percentile",
    "kl_mean": "mean KL",
    "kl_median": "median KL",
    "kl_max": "largest KL",
    "top1": "same likeliest token",
    "top10": "shared of the ten likeliest",
}
SHARES = ("same likeliest token", "shared of the ten likeliest")
SIDES = {
    "logits": ("zoo", "zoo: its logits from the reference's in {dtype}, on the same weights and prompts."),
    "cached": ("cached", "cached: the zoo's through a cache, in chunks and single tokens, from its own in one pass."),
    "exact": ("zoo, f32", "zoo, f32: the zoo's in {dtype} from the reference's in float32."),
    "own": ("own, f32", "own, f32: the reference's in {dtype} from its own in float32, the yardstick."),
}
FIRST, GROWTH = 16, 4  # positions of the first bucket, and how much further each next one reaches


def table(report: Report) -> str:
    """The whole report: figures, error against position, parts, verdict."""
    return "\n\n".join([_head(report), _figures(report), _positions(report), _notes(report), _verdict(report)])


def _head(report: Report) -> str:
    prompts = " and ".join(report.prompts)
    lines = [
        f"{report.source}: {format_count(report.parameters)} parameters, {report.dtype}",
        f"against {report.reference}",
        f"{len(report.prompts)} prompt{'s' * (len(report.prompts) > 1)} of {report.length} tokens: {prompts}",
    ]
    return "\n".join(fill(line, 80, subsequent_indent="  ", break_on_hyphens=False) for line in lines)


def _sides(report: Report) -> dict[str, Difference]:
    return {name: side for name in SIDES if (side := getattr(report, name)) is not None}


def _figures(report: Report) -> str:
    sides = _sides(report)
    rows: list[dict[str, Any]] = []
    for figure, what in FIGURES.items():
        number = _Share if what in SHARES else float
        rows.append({"what": what} | {name: number(getattr(side, figure)) for name, side in sides.items()})
    return render(rows, [Column("what", ""), *_columns(report)])


def _columns(report: Report) -> list[Column]:
    return [Column(name, f"{SIDES[name][0]:>9}", _shown) for name in _sides(report)]


class _Share(float):
    """A part of one."""


def _shown(value: float) -> str:
    return _share(value) if isinstance(value, _Share) else _error(value)


def buckets(length: int) -> Iterator[tuple[int, int]]:
    """Positions from the first to the last, in few stretches: (first, one past the last)."""
    start, end = 0, FIRST
    while start < length:
        yield start, min(end, length)
        start, end = end, end * GROWTH


def _positions(report: Report) -> str:
    edges = set(dict(buckets(report.length))) | {report.length}
    if report.window and report.window < report.length:
        edges |= {report.window}  # a mistake about the window shows from here on
    bounds = sorted(edges)
    rows: list[dict[str, Any]] = []
    for start, end in pairwise(bounds):
        rows.append({"position": f"{start}-{end - 1}" if end - start > 1 else str(start)})
        for name, side in _sides(report).items():
            rows[-1][name] = _largest(side.by_position[start:end])
    return render(rows, [Column("position", "largest, at position       "), *_columns(report)])


def _largest(positions: tuple[Position, ...]) -> float:
    return max((position.largest for position in positions if not isnan(position.largest)), default=float("nan"))


def _notes(report: Report) -> str:
    bad = [part for part in report.parts if not part.holds]
    ties = sum(part.ties for part in report.parts)
    worst = max(report.parts, key=lambda part: part.error / part.bound)
    lines = [SIDES[name][1].format(dtype=report.dtype) for name in _sides(report)]
    lines.append("KL: divergence from the reference's distribution of the next token, in nats a token.")
    given = f"Each of {len(report.parts)} parts, given what the reference gave its own"
    if report.first is not None:
        errs = f"{_error(report.first.error)} of a token's vector, where rounding explains {_error(report.first.bound)}"
        verb = "differs" if len(bad) == 1 else "differ"
        lines.append(f"{given}: {len(bad)} {verb} by more than rounding, the first being {report.first} ({errs}).")
    else:
        lines.append(f"{given}: all equal but for rounding, most in {worst} ({_error(worst.error)} of a vector).")
    if report.rerouted:
        left = len(report.prompts) * report.length - report.logits.tokens
        uncounted = f"; {left} tokens that hang on that are not counted" if left else ""
        lines.append(f"Routers chose other experts {report.rerouted} time{'s' * (report.rerouted > 1)}{uncounted}.")
    if ties:
        lines.append(f"Given the same input, rounding decided between experts {ties} time{'s' * (ties > 1)}.")
    if report.window >= report.length:
        lines.append(f"No token has left the window of {report.window}: --tokens {2 * report.window} would show more.")
    return "\n".join(fill(line, 80, subsequent_indent="  ", break_on_hyphens=False) for line in lines)


def _verdict(report: Report) -> str:
    failed = [check for check in report.checks if not check.holds]
    text = f"{'FAIL' if failed else 'PASS'}: {'; '.join(_said(check) for check in failed or report.checks)}"
    if report.first is not None:
        text += f"; first in {report.first}"
    return fill(text, 80, subsequent_indent="  ", break_on_hyphens=False)


def _said(check: Check) -> str:
    return f"{check.what} {_error(check.value)}, bound {_error(check.bound)}"


def _error(value: float) -> str:
    return "-" if isnan(value) else "0" if value == 0 else f"{value:.1e}"


def _share(value: float) -> str:
    return "-" if isnan(value) else f"{100 * value:.2f}%" if value < 1 else "100%"
