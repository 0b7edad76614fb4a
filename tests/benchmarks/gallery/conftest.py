"""One gallery and one browser for all tests of it: both take seconds to start."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

import zoo
from benchmarks.analytic.compare import PAIRS
from benchmarks.analytic.models import chosen, one
from benchmarks.gallery import files
from benchmarks.gallery.groups import typical
from tests.benchmarks.gallery.speeds import MEASURED

dtype_name = attrgetter("name")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


# Of every architecture the size that stands for it, and those of the six pairs: all of them would take twice as long.
SHOWN = [one(name) for name in zoo.names() if name in {*map(dtype_name, typical(chosen([]))), *chain(*PAIRS)}]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery with speeds and with pictures."""
    out = tmp_path_factory.mktemp("gallery")
    files.write(out, SHOWN, MEASURED, images=True)
    return out


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium that is on this machine."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'zoo-llm[test]'")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is on the PATH")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()
