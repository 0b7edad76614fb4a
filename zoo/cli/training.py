"""Shows the progress of training: a bar and lines on stderr during training, a table on stdout at the end."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from textwrap import indent
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from zoo.units import format_count

Row = dict[str, Any]
BAR = "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt}{postfix}, {remaining} left"
MIN_INTERVAL = 0.2  # seconds between two updates of the bar


def shown(rows: Iterable[Row], steps: int, flops_per_token: float, rate: float) -> Iterator[Row]:
    """Yields the rows of a run unchanged. Shows a progress bar on a terminal, and for each evaluation a line and a
    sample. MFU is relative to `rate`, the measured FLOPs per second of a matrix product."""
    options = {"file": sys.stderr, "disable": None, "mininterval": MIN_INTERVAL, "dynamic_ncols": True}
    with tqdm(total=steps, bar_format=BAR, **options) as bar:
        for row in rows:
            bar.update(row["step"] - bar.n)
            if "loss" in row:
                bar.set_postfix_str(_figures(row, flops_per_token, rate), refresh=False)
            if "bits_per_byte" in row:
                bar.write(evaluation_line(row, steps, flops_per_token, rate), file=sys.stderr)
                if row.get("sample"):
                    bar.write(indent(printable(row["sample"]), "    | ", lambda line: True), file=sys.stderr)
            yield row


def evaluation_line(row: Row, steps: int, flops_per_token: float, rate: float) -> str:
    """Formats an evaluation as one line of less than 80 characters."""
    trained = f", {_figures(row, flops_per_token, rate)}" if "loss" in row else ""
    return f"step {row['step']} of {steps}: {row['bits_per_byte']:.3f} bits/byte held out{trained}"


def summary(facts: Mapping[str, str]) -> str:
    """Formats the summary of a run as a table."""
    return tabulate(facts.items(), tablefmt="plain", disable_numparse=True)


def minutes(seconds: float) -> str:
    """Formats a duration: 45 s, 9.8 min, 3.2 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def printable(text: str) -> str:
    """Returns text that a model generated, with a replacement for each character that controls a terminal."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in text)


def mfu(row: Row, flops_per_token: float, rate: float) -> float:
    """Returns the model FLOPs utilisation of a step, relative to the measured `rate`. It is limited to 1, since `rate`
    is too low if other programs ran during its measurement."""
    return min(1.0, float(row["tokens_per_second"]) * flops_per_token / rate)


def _figures(row: Row, flops_per_token: float, rate: float) -> str:
    speed = format_count(row["tokens_per_second"])
    return f"loss {row['loss']:.3f}, {speed} tokens/s, MFU {mfu(row, flops_per_token, rate):.0%}"
