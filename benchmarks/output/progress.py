"""A progress bar on stderr, if that is a terminal, for work of more than two seconds."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

DELAY, MIN_INTERVAL = 2, 0.1  # seconds until the bar appears, and between two updates


class Progress:
    """The number of finished runs of a measurement, and the time left at the average speed so far."""

    def __init__(self, bar: tqdm) -> None:
        self._bar = bar

    def doing(self, what: str) -> None:
        """Shows a description of the current work."""
        self._bar.set_description(what, refresh=False)

    def tick(self) -> None:
        """Counts one more run as done."""
        self._bar.update()

    def expect(self, runs: int) -> None:
        """Sets the total number of runs."""
        self._bar.total = runs


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Yields a bar that appears after DELAY seconds and is removed when the block ends."""
    options = {"file": sys.stderr, "disable": None, "leave": False, "delay": DELAY, "mininterval": MIN_INTERVAL}
    with tqdm(desc=what, unit="run", miniters=1, smoothing=0, **options) as bar:  # smoothing 0: the average of all runs
        yield Progress(bar)
