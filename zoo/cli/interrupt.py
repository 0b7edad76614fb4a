"""Ctrl-C while a command of ours starts or ends: one line and exit code 130, as in between.

`python -m zoo.build` imports its packages, and with them torch, for seconds before the first line of the command runs.
No `try` can stand around that. So each package imports this file before anything else, and this file sets a handler for
SIGINT, but only where the process is such a command: a program or a notebook that imports the zoo keeps its own.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

PACKAGES = ("zoo", "weights", "benchmarks")
EXIT_CODE = 130
_interrupted = False  # while a command ran


def command() -> str:
    """The module that `python -m MODULE` is about to run, while its package is imported; "" at any other time."""
    if sys.argv[:1] != ["-m"]:  # Python sets it while it looks for the module, and then puts the file's path there
        return ""
    word = sys.orig_argv[-len(sys.argv)]  # the arguments after the module are the last of both lists
    return word.partition("m")[2] if word.startswith("-") else word  # -mzoo.build is one word


def leave(number: int, frame: FrameType | None) -> None:
    """The handler: say that the command was interrupted, and end the process at once.

    Raising KeyboardInterrupt would not do. In an import it shows a traceback, and some imports swallow it.
    """
    _flush()
    os.write(2, b"error: interrupted\n")
    os._exit(EXIT_CODE)


@contextmanager
def raised() -> Iterator[None]:
    """Within, Ctrl-C raises KeyboardInterrupt as usual, also where `leave` was set."""
    if signal.getsignal(signal.SIGINT) is not leave:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        global _interrupted
        _interrupted = True
        raise
    finally:
        signal.signal(signal.SIGINT, leave)


def _end() -> None:
    """The last callback at exit: an interrupted process ends with EXIT_CODE.

    Without it Python would kill itself by the signal where the KeyboardInterrupt came through exec(text), although it
    was caught. Making a dataclass calls that, and so does many an import within a command.
    """
    if _interrupted:
        _flush()
        os._exit(EXIT_CODE)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a closed pipe, or a write that the signal came into
            stream.flush()


# Python's own handler alone is replaced: who started the process may have told it to ignore interrupts.
if command().partition(".")[0] in PACKAGES and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave)
    atexit.register(_end)  # the last registered is called first, and nothing has registered anything yet
