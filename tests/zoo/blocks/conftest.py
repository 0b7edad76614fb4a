"""Blocks are compared in float64, which is the default dtype of these tests."""

import pytest


@pytest.fixture(autouse=True)
def _blocks_in_float64(_float64: None) -> None:
    pass
