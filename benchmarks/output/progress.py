"""A bar on stderr for what takes longer than two seconds, where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

DELAY, EVERY = 2, 0.1  # seconds until it comes, and between two looks


class Progress:
    """How far a measurement is, and how long the rest will take at the pace so far."""

    def __init__(self, bar: tqdm) -> None:
        self._bar = bar

    def doing(self, what: str) -> None:
        """Say what is being done now."""
        self._bar.set_description(what, refresh=False)

    def tick(self) -> None:
        """One more run is done."""
        self._bar.update()

    def expect(self, runs: int) -> None:
        """There will be this many runs in all."""
        self._bar.total = runs


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """A bar while the block runs; it goes when the block ends, and does not come where that takes under two seconds."""
    options = {"file": sys.stderr, "disable": None, "leave": False, "delay": DELAY, "mininterval": EVERY}
    with tqdm(desc=what, unit="run", miniters=1, smoothing=0, **options) as bar:  # paced by all runs, not the last ones
        yield Progress(bar)
