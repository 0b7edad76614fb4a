"""One gallery and one browser for all tests: both take seconds to start."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import zoo
from benchmarks.analytic.compare import PAIRS
from benchmarks.analytic.models import chosen, one
from benchmarks.gallery import files
from benchmarks.gallery.overview import typical
from tests.benchmarks.gallery.learned import sample
from tests.benchmarks.gallery.speeds import MEASURED

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


# One size of every architecture, and those of the six pairs: all sizes would take twice as long.
SHOWN_NAMES = {*(model.name for model in typical(chosen([]))), *chain(*PAIRS)}
SHOWN = [one(name) for name in zoo.names() if name in SHOWN_NAMES]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery with measured speeds, with what models learn, and with chart images."""
    out = tmp_path_factory.mktemp("gallery")
    files.write_gallery(out, SHOWN, MEASURED, images=True, learned=sample())
    return out


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The headless Chromium of this machine."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'zoo-llm[test]'")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is on the PATH")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()
