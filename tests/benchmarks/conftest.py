"""The families whose facts the tests of the benchmarks state."""

from __future__ import annotations

import pytest

from benchmarks.analytic import selection
from zoo.architectures import families
from zoo.catalog import sizes

EIGHT = ("llama3", "olmo2", "deepseek-v3", "gemma3", "mistral3", "qwen3", "smollm3", "gpt-oss")  # in order of release


@pytest.fixture
def _eight_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of all models are of these eight families, whatever else is added to the zoo."""
    found = {name: families()[name] for name in EIGHT}
    of_them = {name: sizes()[name] for module in found.values() for name in module.SIZES}
    blocks_page = pytest.importorskip("benchmarks.gallery.blocks_page", exc_type=ImportError)
    for module in (selection, blocks_page):
        monkeypatch.setattr(module, "families", lambda: found)
    monkeypatch.setattr(selection, "sizes", lambda: of_them)
