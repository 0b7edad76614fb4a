"""Fixtures of tests of compiled code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def _strict_compiler() -> Iterator[None]:
    """Graphs of other tests do not count, and exceeding the limit is an error instead of an uncompiled call."""
    from torch._dynamo import config
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    with config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch.compiler.reset()
