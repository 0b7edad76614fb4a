"""Worker processes, one per core with one torch thread each. Each worker gets one job at a time.

Workers are spawned, never forked: a fork of a process with threads may hang. Ctrl-C, which the terminal sends to the
whole group of processes, does not reach them; the process that started them ends them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch

from zoo.errors import ZooError

Job = TypeVar("Job")
Result = TypeVar("Result")
CONTEXT = get_context("spawn")


@dataclass(frozen=True)
class Failure:
    """The reason why a job has no result, in one line."""

    reason: str


@dataclass
class _Worker(Generic[Job]):
    process: BaseProcess
    connection: Connection
    job: Job | None = None


class Workers(Generic[Job, Result]):
    """A pool of `count` processes that apply `function`, which must be importable by name, to jobs.

    It is a context manager: leaving the block, even by an exception or Ctrl-C, kills all processes. With a count of 1,
    jobs run in this process.
    """

    def __init__(self, function: Callable[[Job], Result], count: int) -> None:
        self.function, self.count = function, count
        self._workers: list[_Worker[Job]] = []

    def __enter__(self) -> Workers[Job, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers.clear()

    def map(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | Failure]]:
        """Yields each job with its result or the reason for its failure, in the order in which jobs end."""
        if self.count == 1:
            for job in jobs:
                with one_thread():
                    result = attempt(self.function, job)
                yield job, result
            return
        waiting = list(reversed(jobs))
        while waiting or any(worker.job is not None for worker in self._workers):
            self._hand_out(waiting)
            busy = {worker.connection: worker for worker in self._workers if worker.job is not None}
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                assert worker.job is not None
                job, worker.job = worker.job, None
                try:
                    result = worker.connection.recv()
                except (EOFError, OSError):
                    result = self._ended(worker)
                yield job, result

    def _hand_out(self, waiting: list[Job]) -> None:
        """Gives each idle worker a job. Starts workers as long as there are fewer than `count` and jobs wait."""
        idle = [worker for worker in self._workers if worker.job is None]
        while waiting and (idle or len(self._workers) < self.count):
            worker = idle.pop() if idle else self._start()
            worker.job = waiting.pop()
            worker.connection.send(worker.job)

    def _start(self) -> _Worker[Job]:
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_serve, args=(theirs, self.function), daemon=True)
        with interrupts_held():
            process.start()
        theirs.close()
        worker = _Worker[Job](process, ours)
        self._workers.append(worker)
        return worker

    def _ended(self, worker: _Worker[Job]) -> Failure:
        worker.process.join()
        code = worker.process.exitcode
        worker.connection.close()
        self._workers.remove(worker)
        by = f"signal {-code} (out of memory?)" if code is not None and code < 0 else f"exit code {code}"
        return Failure(f"its process ended by {by}")


def attempt(function: Callable[[Job], Result], job: Job) -> Result | Failure:
    """Returns the result of a job, or the reason for its failure. Ctrl-C is not caught."""
    try:
        return function(job)
    except ZooError as error:
        return Failure(" ".join(str(error).split()))
    except Exception as error:  # a bug in one run: the other runs are kept
        return Failure(" ".join(f"{type(error).__name__}: {error}".split()))


@contextmanager
def one_thread() -> Iterator[None]:
    """Makes torch compute with one thread within the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Delays Ctrl-C within the block. A process that starts here inherits the signal mask and never receives it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # started within the block, it would unblock Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def available_cores() -> int:
    """Returns the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Runs a worker: it performs jobs until the other end of the connection closes."""
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # the process that started this one has ended
        while True:
            connection.send(attempt(function, connection.recv()))
