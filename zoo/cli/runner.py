"""Runs a command line: exit codes, one-line errors, interrupts, closed pipes, and parallel processes.

Data goes to stdout or a file, everything else to stderr. Exit codes: 0 success, 1 a check failed, 2 usage error, 3 not
available, 4 malformed input, 130 interrupted.
"""

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, NoReturn

import torch
import torch.distributed as dist
import typer

from zoo.cli.interrupt import EXIT_CODE, raised
from zoo.core import processes
from zoo.core.collectives import Group
from zoo.core.devices import find_device
from zoo.errors import NotAvailable, UsageError, ZooError
from zoo.new_files import write_file

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        callback=lambda names: import_modules(names or ()),
        help="Module to import that defines your own blocks (repeatable).",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Write to this file instead of the terminal.")]
TensorParallel = Annotated[
    int, typer.Option("--tp", min=1, help="Number of processes that the model is split across; torchrun starts them.")
]
ExpertParallel = Annotated[
    int,
    typer.Option(
        "--ep",
        min=1,
        help="1, or the value of --tp to put whole experts in each process, instead of a slice of every expert.",
    ),
]
# click's UsageError (unknown option, missing argument, bad value). Some releases of typer contain their own click.
_BadCall: type[Exception] = typer.BadParameter.__bases__[0]


def run(app: typer.Typer, prog: str, args: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line and exits with its code. An error is one line on stderr, which a single process prints.

    A character that the terminal's encoding lacks, such as × in ASCII, is printed as a question mark. Help and errors
    call the command `prog`, unless the main module has another name in `typed_as`, as the command `zoo` does.
    """
    prog = getattr(sys.modules.get("__main__"), "typed_as", prog)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a replaced stream may lack this method
            stream.reconfigure(errors="replace")
    sys.exit(exit_code(app, prog, sys.argv[1:] if args is None else args))


def exit_code(app: typer.Typer, prog: str, args: Sequence[str]) -> int:
    """Runs a command line. Returns its exit code: that of the error, an integer that the command returned, or 0."""
    command = typer.main.get_command(app)
    try:
        # command.main() would suppress interrupts and closed pipes, in different ways in each release of typer.
        with raised(), command.make_context(prog, list(args)) as context:
            code = command.invoke(context)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except typer.Exit as stop:  # such as --help
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", EXIT_CODE, args)
    except _BadCall as error:
        message: str = error.format_message().replace("Value error, ", "")  # type: ignore[attr-defined]
        asked = getattr(getattr(error, "ctx", None), "command_path", prog)  # of a verb, with its name
        return _fail(f"{message[:1].lower()}{message[1:].rstrip('.')} (see {asked} --help)", 2, args)
    except ZooError as error:
        return _fail(str(error), error.exit_code, args, getattr(error, "__notes__", ()))
    except BrokenPipeError:  # the program that reads the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # a bug: print one line that says how to see more
        return _fail(f"unexpected {type(error).__name__}: {error}; --debug shows where", 1, args)


def _fail(message: str, code: int, args: Sequence[str], notes: Sequence[str] = ()) -> int:
    if not processes.may_report_error():
        return code
    if "--debug" in args:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", *notes, sep="\n", file=sys.stderr)
    return code


def import_modules(names: Iterable[str]) -> None:
    """Imports modules that define blocks (`--import`), first from the working directory. Raises NotAvailable for a
    module that does not exist, UsageError for one that fails."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            advice = f"; write --import {name.removesuffix('.py')}" if name.endswith(".py") else ""
            raise NotAvailable(f"--import {name}: there is no module {error.name!r}{advice}") from error
        except Exception as error:
            raise UsageError(f"--import {name}: {type(error).__name__}: {error}") from error


def emit(text: str, out: Path | None = None) -> None:
    """Writes text to stdout or to the file `out`. An interrupted write leaves no partial file."""
    if out is None:
        print(text)
    else:
        write_file(out, f"{text}\n".encode())


@contextmanager
def tensor_parallel(device: str, tp: int, command: str) -> Iterator[tuple[torch.device, Group | None]]:
    """Yields the device of this process, and the group of all processes that torchrun started; the group is None for a
    single process.

    Raises UsageError if `tp` is not the number of processes that run `command`, and the errors of `processes.joined`.
    """
    launched = processes.launched()
    if tp != launched:
        start = f"torchrun --nproc-per-node {tp} -m {command}"
        advice = f"{start} ... --tp {tp} starts {tp}" if tp > 1 else f"give --tp {launched}"
        raise UsageError(f"--tp {tp} with {launched} process{'es' * (launched > 1)}: {advice}")
    if tp == 1:
        yield find_device(device), None
        return
    with processes.joined(device) as place:
        assert dist.group.WORLD is not None
        yield place, Group.of(dist.group.WORLD)


@contextmanager
def quiet_unless_first() -> Iterator[None]:
    """Silences all processes except the first, so that the output appears once."""
    if processes.rank() == 0:
        yield
        return
    before = logging.root.manager.disable
    logging.disable()
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(before)
