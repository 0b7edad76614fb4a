"""A progress bar on stderr, where that is a terminal, for what takes longer than two seconds."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

DELAY, MIN_INTERVAL = 2, 0.1  # seconds until the bar appears, and between two updates


class Progress:
    """How many runs of a measurement are done, and how long the rest will take at the average speed so far."""

    def __init__(self, bar: tqdm) -> None:
        self._bar = bar

    def doing(self, what: str) -> None:
        """Show what is being done now."""
        self._bar.set_description(what, refresh=False)

    def tick(self) -> None:
        """Count one more run as done."""
        self._bar.update()

    def expect(self, runs: int) -> None:
        """Set the number of runs in all."""
        self._bar.total = runs


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """A bar that appears after DELAY seconds and is removed when the block ends."""
    options = {"file": sys.stderr, "disable": None, "leave": False, "delay": DELAY, "mininterval": MIN_INTERVAL}
    with tqdm(desc=what, unit="run", miniters=1, smoothing=0, **options) as bar:  # smoothing 0: the average of all runs
        yield Progress(bar)
