"""One gallery and one browser for all tests: both take seconds to start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import zoo
from benchmarks.analytic.compare import PAIRS
from benchmarks.analytic.models import one
from benchmarks.gallery import charts, files, learning_curves
from tests.benchmarks.gallery.samples import MEASURED, sample
from tests.presets import representatives

Open = Callable[..., Any]
CHARTS = {**charts.CHARTS, **learning_curves.CHARTS}


# Some pairs, some of what shows every kind of block, and what the tests select: the time of a page grows with the
# square of its models.
PAIRS_SHOWN = (PAIRS[0], PAIRS[2], PAIRS[-4], PAIRS[-1])
SHOWN_NAMES = {*representatives()[::4], *chain(*PAIRS_SHOWN), "llama3.1-8b", "gpt-oss-20b"}
SHOWN = [one(name) for name in zoo.names() if name in SHOWN_NAMES]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery with measured speeds, learning results and chart images."""
    out = tmp_path_factory.mktemp("gallery")
    files.write_gallery(out, SHOWN, MEASURED, images=True, learned=sample())
    return out


@pytest.fixture(scope="module")
def open_page(browser: Any, folder: Path) -> Iterator[Open]:
    """Opens the page at a width, in a colour scheme. Checks afterwards that there was no console message and that only
    the page was requested."""
    events: list[str] = []
    contexts = []

    def opened(width: int = 1280, scheme: str = "light", place: str = "", touch: bool = False) -> Any:
        viewport = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=viewport, color_scheme=scheme, has_touch=touch))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: events.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: events.append(f"error: {error}"))
        page.on("request", lambda request: events.append(request.url.split("#")[0]))
        page.goto((folder / "index.html").as_uri() + (f"#{place}" if place else ""))
        page.locator("html[data-started]").wait_for(state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert {event for event in events if not event.startswith("blob:")} == {(folder / "index.html").as_uri()}


@pytest.fixture(scope="module")
def page(open_page: Open) -> Any:
    """A page that the tests share; each sets the controls that it needs."""
    return open_page()


def draw_charts(page: Any) -> None:
    """Scroll to every chart, and wait until it is drawn."""
    for name in CHARTS:
        page.locator(f'[data-chart="{name}"]').scroll_into_view_if_needed()
        page.locator(f'[data-chart="{name}"] .plot svg').wait_for()
