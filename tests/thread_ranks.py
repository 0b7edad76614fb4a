"""Ranks of tensor parallel as threads of one process, for tests of many small models: no gradients, no compiler."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from zoo.core import collectives
from zoo.core.collectives import Group
from zoo.sharding import Rank

T = TypeVar("T")


class ThreadRanks:
    """Threads that exchange tensors where processes would."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self._here = ranks, threading.local()
        self._barrier, self._slots = threading.Barrier(ranks, timeout=60), [None] * ranks

    def run(self, function: Callable[[Group], T]) -> list[T]:
        """Returns the results of the function in all ranks. Raises the error that one of them raises."""

        def of(index: int) -> T:
            self._here.index = index
            try:
                with torch.no_grad():
                    return function(Group("threads", Rank(index, self.ranks)))
            except BaseException:
                self._barrier.abort()
                raise

        self._barrier.reset()
        with ThreadPoolExecutor(self.ranks) as pool:
            futures = [pool.submit(of, index) for index in range(self.ranks)]
        errors = [error for future in futures if (error := future.exception())]
        if errors:  # the others were waiting for the first one that failed
            raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
        return [future.result() for future in futures]

    @contextmanager
    def connected(self) -> Iterator[None]:
        """The collective operations between threads instead of processes."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(collectives, "_all_reduce", lambda x, name: torch.stack(self._exchange(x)).sum(0))
            patch.setattr(collectives, "_all_gather", lambda x, name, ranks: torch.cat(self._exchange(x)))
            patch.setattr(collectives, "_all_to_all", self._all_to_all)
            yield

    def _exchange(self, value: Any) -> list[Any]:
        self._slots[self._here.index] = value
        self._barrier.wait()
        found = list(self._slots)
        self._barrier.wait()
        return found

    def _all_to_all(self, x: Tensor, name: str, sent: list[int], received: list[int]) -> Tensor:
        parts = self._exchange(x.split(sent))
        own = [each[self._here.index] for each in parts]
        assert [len(part) for part in own] == received
        return torch.cat(own)
