"""Runs a command line: exit codes, one-line errors, interrupts and closed pipes.

Data goes to stdout or a file, everything else to stderr. Exit codes: 0 done, 1 a check failed, 2 usage, 3 not
available, 4 malformed input, 130 interrupted.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from zoo.cli.interrupt import EXIT_CODE, raised
from zoo.errors import NotAvailable, ZooError

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write to this file instead of the terminal.")]
# click's UsageError (an unknown option, a missing argument, a bad value), whether typer imports click or contains it.
_BadCall: type[Exception] = typer.BadParameter.__bases__[0]


def _always() -> bool:
    return True


def run(
    app: typer.Typer, prog: str, args: Sequence[str] | None = None, may_report: Callable[[], bool] = _always
) -> NoReturn:
    """Runs a command line and exits with its code; an error is one line on stderr, if this process `may_report` it.

    A character that the terminal's encoding cannot show, such as × in ASCII, is printed as a question mark. Help and
    errors call the command `prog`, or as it was typed: the command `zoo` sets `typed_as` in the main module.
    """
    prog = getattr(sys.modules.get("__main__"), "typed_as", prog)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a program's replacement of a stream may lack it
            stream.reconfigure(errors="replace")
    sys.exit(exit_code(app, prog, sys.argv[1:] if args is None else args, may_report))


def exit_code(app: typer.Typer, prog: str, args: Sequence[str], may_report: Callable[[], bool] = _always) -> int:
    """Runs a command line and returns its exit code: 0, an integer that its function returned, or the error's."""
    command = typer.main.get_command(app)
    try:
        # Not command.main(), which swallows interrupts and closed pipes, differently in each release of typer.
        with raised(), command.make_context(prog, list(args)) as context:
            code = command.invoke(context)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except typer.Exit as stop:  # --help, for one
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", EXIT_CODE, args, may_report)
    except _BadCall as error:
        message: str = error.format_message().replace("Value error, ", "")  # type: ignore[attr-defined]
        return _fail(f"{message[:1].lower()}{message[1:].rstrip('.')} (see {prog} --help)", 2, args, may_report)
    except ZooError as error:
        return _fail(str(error), error.exit_code, args, may_report)
    except BrokenPipeError:  # the reader, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # a bug: still one line, and how to see more
        return _fail(f"unexpected {type(error).__name__}: {error}; --debug shows where", 1, args, may_report)


def _fail(message: str, code: int, args: Sequence[str], may_report: Callable[[], bool]) -> int:
    if not may_report():
        return code
    if "--debug" in args:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def emit(text: str, out: Path | None = None) -> None:
    """Writes text to stdout or to the file `out`, which is written as a whole or not at all."""
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
