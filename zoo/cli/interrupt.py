"""Handles Ctrl-C while a command starts or ends: it prints one line and exits with code 130, as while the command runs.

`python -m zoo.build` imports torch for seconds before the first line of the command runs, and no `try` can enclose
these imports. So each package imports this module first. It sets a handler for SIGINT only if the process runs one of
these commands. Other programs that import the zoo keep their own handlers.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

PACKAGES = ("zoo", "weights", "benchmarks")
EXIT_CODE = 130


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a command runs. A plain KeyboardInterrupt would not do: if it is raised in exec(text), which
    dataclasses call, Python kills itself by the signal at exit, even if the exception was caught."""


def command() -> str:
    """Returns the module of a `python -m MODULE` command while its package is imported; "" at any other time."""
    if sys.argv[:1] != ["-m"]:  # Python sets "-m" while it searches for the module, and later the path of the file
        return ""
    word = sys.orig_argv[-len(sys.argv)]  # both lists end with the same arguments
    return word.partition("m")[2] if word.startswith("-") else word  # -mzoo.build is one word


def exit_now(number: int, frame: FrameType | None) -> None:
    """Prints that the command was interrupted, and ends the process. Some imports would suppress an exception."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed pipes, and writes that the signal interrupted
            stream.flush()
    os.write(2, b"error: interrupted\n")
    os._exit(EXIT_CODE)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted


@contextmanager
def raised() -> Iterator[None]:
    """Makes Ctrl-C raise KeyboardInterrupt within the block if its handler is `exit_now`, and restores it."""
    before = signal.getsignal(signal.SIGINT)
    if before is exit_now:
        signal.signal(signal.SIGINT, _raise)
    try:
        yield
    finally:
        if before is exit_now:
            signal.signal(signal.SIGINT, exit_now)


# Only Python's own handler is replaced: the parent process may have asked to ignore interrupts.
if command().partition(".")[0] in PACKAGES and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, exit_now)
