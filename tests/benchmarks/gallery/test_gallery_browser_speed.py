"""How large the page of every published size is, and how soon it paints: sizes have a limit, times are only told."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

import zoo
from benchmarks.analytic.models import chosen
from benchmarks.gallery import files

LIMIT = 6 * 10**6
RUNS = 5
PAINTED = "performance.getEntriesByName('first-contentful-paint')"


@pytest.mark.browser
@pytest.mark.slow
def test_page_of_every_size(browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, *_ = files.write_gallery(tmp_path, chosen(zoo.names()), None, images=False)
    assert index.stat().st_size < LIMIT
    paints, starts = [], []
    for _ in range(RUNS):
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        page = context.new_page()
        page.goto(index.as_uri())
        page.locator("html[data-started]").wait_for(state="attached")
        starts.append(page.evaluate("performance.now()"))
        page.wait_for_function(f"{PAINTED}.length > 0")
        paints.append(page.evaluate(f"{PAINTED}[0].startTime"))
        context.close()
    with capsys.disabled():
        size, paint, start = index.stat().st_size / 1e6, statistics.median(paints), statistics.median(starts)
        print(f"\n{len(zoo.names())} sizes: {size:.2f} MB, first paint {paint:.0f} ms, started {start:.0f} ms")
