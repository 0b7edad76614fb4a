"""Worker processes: results come as jobs end, failures are one line, and no process is left behind."""

from __future__ import annotations

import time
from multiprocessing import active_children

import pytest
import torch

from benchmarks.learning.workers import Failure, Workers
from zoo.errors import UsageError

DYING, FAILING = "__import__('os')._exit(3)", "1/0"


def test_results_come_back_and_failures_are_a_line_each() -> None:
    with Workers(eval, 2) as workers:  # a function that any process can import
        found = dict(workers.map([DYING, "6 * 7", FAILING, "__import__('torch').get_num_threads()"]))
        assert found == {
            "6 * 7": 42,
            FAILING: Failure("ZeroDivisionError: division by zero"),
            DYING: Failure("its process ended by exit code 3"),
            "__import__('torch').get_num_threads()": 1,
        }
        assert dict(workers.map(["2 + 2"])) == {"2 + 2": 4}  # the same processes serve again
        assert list(workers.map([])) == []
    assert not active_children()


def test_an_interruption_ends_every_process_at_once() -> None:
    def interrupted() -> None:
        with Workers(time.sleep, 2) as workers:
            for _ in workers.map([600, 0]):
                assert len(active_children()) == 2
                raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not active_children()
    assert time.monotonic() - start < 120


def test_one_at_a_time_runs_in_this_process_with_one_thread() -> None:
    def fails(job: int) -> int:
        if job == 2:
            raise UsageError("two is\nrefused")
        return job * torch.get_num_threads()

    threads = torch.get_num_threads()
    with Workers(fails, 1) as workers:
        assert list(workers.map([1, 2, 3])) == [(1, 1), (2, Failure("two is refused")), (3, 3)]
    assert torch.get_num_threads() == threads
    assert not active_children()
