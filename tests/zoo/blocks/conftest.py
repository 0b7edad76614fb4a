"""Blocks are compared in float64: what a test makes without naming a dtype is in it."""

import pytest


@pytest.fixture(autouse=True)
def _blocks_in_float64(_float64: None) -> None:
    pass
