"""The parity report's error against position, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weights.reference.report import Report
from zoo.errors import NotAvailable, UsageError, require_package

KINDS = (".png", ".svg")
LABELS = {
    "logits": "zoo to reference",
    "cached": "zoo, cached to full",
    "exact": "zoo to reference in float32",
    "own": "reference to itself in float32",
}


def check(file: Path) -> None:
    """Raise, before anything is run, what `plot` would raise for this file."""
    if file.suffix not in KINDS:
        raise UsageError(f"--plot {file}: give it a name that ends in {' or '.join(KINDS)}")
    if not file.parent.is_dir():
        raise NotAvailable(f"cannot write {file}: there is no folder {file.parent}")
    require_package("matplotlib", "plot")


def plot(report: Report, file: Path) -> None:
    """Write the largest difference of a logit at each position, over all prompts, to a .png or .svg file."""
    require_package("matplotlib", "plot")
    figure = require_package("matplotlib.figure", "plot").Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, label in LABELS.items():
        side = getattr(report, name)
        if side is not None:
            _line(axes, [position.largest for position in side.by_position], label)
    if report.own is None:
        axes.axhline(report.checks[0].bound, color="black", linestyle="--", linewidth=0.8, label="bound")
    if 0 < report.window < report.length:
        axes.axvline(report.window, color="gray", linestyle=":", linewidth=0.8, label=f"window of {report.window}")
    axes.set(yscale="log", xlabel="position", ylabel="largest difference of a logit", xlim=(0, report.length - 1))
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


def _line(axes: Any, errors: list[float], label: str) -> None:
    """A logarithm has no place for errors of zero: the line is broken there."""
    axes.plot(range(len(errors)), [error if error > 0 else float("nan") for error in errors], linewidth=1, label=label)
