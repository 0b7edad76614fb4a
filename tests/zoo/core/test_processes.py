"""Processes that torchrun started, and one that it did not."""

from __future__ import annotations

import time

import pytest
import torch

from tests.ranks import in_ranks
from zoo.core import kernels, processes
from zoo.errors import UsageError


@pytest.mark.parametrize("device", ["mps", "cuda:1", "cpu:0", "meta"])
def test_a_device_that_processes_cannot_share_is_refused(monkeypatch, device) -> None:
    for name, value in dict(TORCHELASTIC_RUN_ID="test", WORLD_SIZE="2", RANK="0", LOCAL_RANK="0").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="several processes work on --device cpu or cuda"), processes.joined(device):
        pass


def test_one_process_is_no_group() -> None:
    with processes.joined("cpu") as device:
        assert device == torch.device("cpu")
        assert not torch.distributed.is_initialized()
    assert processes.may_report_error()
    assert processes.from_first(lambda: (1, 2)) == (1, 2)
    assert processes.sums(1, 2.5) == [1, 2.5]


def decisions(device: torch.device) -> tuple[bool, list[str], dict[str, str]]:
    """What processes decide that ask in opposite orders; and the kernels of two products, of which rank 1 finds the
    other kernel faster, and rank 0 never does."""
    asked = ["a", "b", "c"] if processes.rank() == 0 else ["c", "b", "a"]
    found = {what: processes.agreed(what, lambda: f"rank {processes.rank()}") for what in asked}

    def pause() -> None:
        time.sleep(0.002)

    plain, other = (pause, lambda: None) if processes.rank() else (lambda: None, pause)
    with kernels.using(None):
        for rows in (1, 16):
            kernels.active().pick("linear", torch.float32, (rows, 4), lambda: kernels.Trial(plain, other))
        return processes.can_agree(), [found[what] for what in "abc"], kernels.choices()


def test_processes_agree_on_what_the_first_that_asks_decides() -> None:
    first, second = in_ranks(2, decisions)
    assert first == second
    can_agree, decided, chosen = first
    assert can_agree
    assert set(decided) <= {"rank 0", "rank 1"}
    assert len(chosen) == 2
