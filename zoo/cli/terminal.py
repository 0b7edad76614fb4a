"""What all command lines share: exit codes, one-line errors, tables in every format, and facts about this machine.

Data goes to stdout or a file, everything else to stderr. Exit codes: 0 done, 1 a check failed, 2 usage, 3 not
available, 4 malformed input, 130 interrupted.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any, NoReturn

import tabulate
import torch
import typer

from zoo.cli.interrupt import EXIT_CODE, raised
from zoo.errors import NotAvailable, ZooError

SCHEMA_VERSION = 1
tabulate.MIN_PADDING = 0  # it would widen each header by two: tables are to fit 80 columns
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write to this file instead of the terminal.")]


class Format(StrEnum):
    """How rows are written."""

    table = "table"
    md = "md"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"


@dataclass(frozen=True)
class Column:
    """One column of a table: the key of its value in a row, the header a person reads, and how a value is shown.

    A plain table breaks its lines at `width` characters; None: it does not break them.
    """

    key: str
    header: str
    show: Callable[[Any], str] = str
    width: int | None = None


# An unknown option, a missing argument, a bad value. Some releases of typer hold click within, others import it; what
# BadParameter derives from is click's UsageError in both.
_BadCall: type[Exception] = typer.BadParameter.__bases__[0]


def run(app: typer.Typer, prog: str, args: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit: with its code, or with the error's after one line on stderr."""
    sys.exit(exit_code(app, prog, sys.argv[1:] if args is None else args))


def exit_code(app: typer.Typer, prog: str, args: Sequence[str]) -> int:
    """Run a command line and return what it exits with: 0, or what its function returned if that is an integer."""
    command = typer.main.get_command(app)
    try:
        # Not command.main(): that swallows interrupts and closed pipes, differently from one typer to the next.
        with raised(), command.make_context(prog, list(args)) as context:
            code = command.invoke(context)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except typer.Exit as stop:  # --help, for one
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", EXIT_CODE, args)
    except _BadCall as error:
        message: str = error.format_message().replace("Value error, ", "")  # type: ignore[attr-defined]
        return _fail(f"{message[:1].lower()}{message[1:].rstrip('.')} (see {prog} --help)", 2, args)
    except ZooError as error:
        return _fail(str(error), error.exit_code, args)
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # a defect of ours: still one line, and how to see more
        return _fail(f"unexpected {type(error).__name__}: {error}; --debug shows where", 1, args)


def _fail(message: str, code: int, args: Sequence[str]) -> int:
    if "--debug" in args:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def write(
    rows: Sequence[dict[str, Any]],
    columns: Sequence[Column],
    format: Format = Format.table,
    out: Path | None = None,
    about: dict[str, Any] | None = None,
) -> None:
    """`render` the rows and `emit` them."""
    emit(render(rows, columns, format, about), out)


def emit(text: str, out: Path | None = None) -> None:
    """Write text to stdout, or to the file `out`, as a whole or not at all."""
    if out is None:
        print(text)
        return
    part = out.with_name(out.name + ".part")
    try:
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(out)
    except OSError as error:
        raise NotAvailable(f"cannot write {out}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def render(
    rows: Sequence[dict[str, Any]],
    columns: Sequence[Column],
    format: Format = Format.table,
    about: dict[str, Any] | None = None,
) -> str:
    """Rows as text.

    Tables show the `columns`; csv holds their raw values; json and jsonl hold the rows as they are, with
    `schema_version`, the machine and what else is told `about` them.
    """
    if format is Format.json:
        return document({**(about or {}), "rows": rows})
    if format is Format.jsonl:
        return "\n".join(json.dumps(_plain(line)) for line in [_stamped(about or {}), *rows])
    if format is Format.csv:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.key for column in columns])
        writer.writerows([[row.get(column.key) for column in columns] for row in rows])
        return text.getvalue().rstrip("\n")
    cells = [[_cell(row.get(column.key), column, format) for column in columns] for row in rows]
    numeric = [all(_is_number(row.get(column.key)) for row in rows) for column in columns]
    return tabulate.tabulate(
        cells,
        headers=[column.header for column in columns],
        tablefmt="github" if format is Format.md else "simple",
        colalign=["right" if right else "left" for right in numeric],
        disable_numparse=True,
    )


def _cell(value: Any, column: Column, format: Format) -> str:
    shown = "" if value is None else column.show(value)
    return fill(shown, column.width) if column.width and format is Format.table else shown


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def document(facts: Mapping[str, Any]) -> str:
    """Facts as one JSON object, under `schema_version` and the machine."""
    return json.dumps(_plain(_stamped(facts)), indent=2)


def _stamped(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, "machine": machine(), **facts}


def _plain(value: Any) -> Any:
    """What JSON can say: it knows no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def machine() -> dict[str, Any]:
    """The machine these figures come from."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None where nobody can say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    return min((found for found in (_free_on_machine(), *_free_in_group()) if found is not None), default=None)


def _free_on_machine() -> int | None:
    """Linux's own estimate; elsewhere all memory there is, an upper bound."""
    try:
        facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return int(facts["MemAvailable"].removesuffix("kB")) * 1024
    except (OSError, KeyError):
        sysconf = getattr(os, "sysconf", None)  # not on Windows
        return sysconf("SC_PHYS_PAGES") * sysconf("SC_PAGE_SIZE") if sysconf else None


def _free_in_group() -> Iterator[int]:
    """What a container's limit leaves: control groups, version 2 and 1. Cached file pages can be had back."""
    for folder, limit, usage, cached in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            files = (Path(folder, name) for name in (limit, usage, "memory.stat"))
            allowed, used, stat = (file.read_text(encoding="ascii") for file in files)
            pages = dict(line.split() for line in stat.splitlines())
            yield int(allowed) - int(used) + int(pages[cached])
        except (OSError, KeyError, ValueError):  # no such group, or no limit ("max")
            continue


def count(number: float) -> str:
    """A number of things in three digits: 671.0B, 8.03B, 268M."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= unit:
            return _three(number / unit) + name
    return _three(number)


def size(nbytes: float) -> str:
    """Bytes in binary units: 16.0 GiB, 416 MiB, 0 B."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(nbytes) >= unit:
            return f"{_three(nbytes / unit)} {name}"
    return f"{nbytes:.0f} B"


def _three(number: float) -> str:
    digits = 0 if number >= 100 or number == int(number) else 1 if number >= 10 else 2
    return f"{number:.{digits}f}"
