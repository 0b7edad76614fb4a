"""Handles Ctrl-C while a command starts or ends: one line and exit code 130, as while it runs.

`python -m zoo.build` imports its packages, and with them torch, for seconds before the first line of the command runs;
no `try` can be around that. So each package imports this module before anything else. It sets a handler for SIGINT if
the process is one of these commands: other programs that import the zoo keep their own handler.
"""

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
    """Returns the module that `python -m MODULE` is about to run, while its package is imported; "" at any other
    time."""
    if sys.argv[:1] != ["-m"]:  # Python sets it while it looks for the module, and then puts the file's path there
        return ""
    word = sys.orig_argv[-len(sys.argv)]  # the arguments after the module are the last of both lists
    return word.partition("m")[2] if word.startswith("-") else word  # -mzoo.build is one word


def exit_now(number: int, frame: FrameType | None) -> None:
    """Prints that the command was interrupted, and ends the process at once: the handler of SIGINT.

    A KeyboardInterrupt in an import would show a traceback, and some imports swallow it.
    """
    _flush()
    os.write(2, b"error: interrupted\n")
    os._exit(EXIT_CODE)


@contextmanager
def raised() -> Iterator[None]:
    """Lets Ctrl-C raise KeyboardInterrupt within the block, also where `exit_now` was set."""
    if signal.getsignal(signal.SIGINT) is not exit_now:
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
        signal.signal(signal.SIGINT, exit_now)


def _end() -> None:
    """Ends an interrupted process with EXIT_CODE: the last callback at exit.

    Python kills itself by the signal if a KeyboardInterrupt came through exec(text), although it was caught. Defining a
    dataclass calls exec, and so do many imports within a command.
    """
    if _interrupted:
        _flush()
        os._exit(EXIT_CODE)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a closed pipe, or a write that the signal interrupted
            stream.flush()


# Only Python's own handler is replaced: whoever started the process may have told it to ignore interrupts.
if command().partition(".")[0] in PACKAGES and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, exit_now)
    atexit.register(_end)  # callbacks run in reverse order, and nothing else has registered yet: this one runs last
