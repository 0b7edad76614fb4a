"""Processes that torchrun started, and one that it did not."""

from __future__ import annotations

import pytest
import torch

from zoo.core import processes
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
