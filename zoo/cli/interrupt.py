"""Handles Ctrl-C while a command starts or ends: one line and exit code 130, as while it runs.

`python -m zoo.build` imports torch for seconds before the first line of the command runs, and no `try` can be around
that. So each package imports this module before anything else. It sets a handler for SIGINT only where the process is
one of these commands: other programs that import the zoo keep their own handler.
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
    """Ctrl-C while a command runs. After a plain KeyboardInterrupt in exec(text), which dataclasses call, Python kills
    itself by the signal at its end, even if the exception was caught."""


def command() -> str:
    """Returns the module that `python -m MODULE` is about to run, while its package is imported; "" at any other
    time."""
    if sys.argv[:1] != ["-m"]:  # Python sets it while it looks for the module, and then puts the file's path there
        return ""
    word = sys.orig_argv[-len(sys.argv)]  # the arguments after the module are the last of both lists
    return word.partition("m")[2] if word.startswith("-") else word  # -mzoo.build is one word


def exit_now(number: int, frame: FrameType | None) -> None:
    """Prints that the command was interrupted, and ends the process: some imports would swallow an exception."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a closed pipe, or a write that the signal interrupted
            stream.flush()
    os.write(2, b"error: interrupted\n")
    os._exit(EXIT_CODE)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted


@contextmanager
def raised() -> Iterator[None]:
    """Makes Ctrl-C raise KeyboardInterrupt within the block, even if `exit_now` is its handler outside."""
    before = signal.getsignal(signal.SIGINT)
    if before is exit_now:
        signal.signal(signal.SIGINT, _raise)
    try:
        yield
    finally:
        if before is exit_now:
            signal.signal(signal.SIGINT, exit_now)


# Only Python's own handler is replaced: whoever started the process may have told it to ignore interrupts.
if command().partition(".")[0] in PACKAGES and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, exit_now)
