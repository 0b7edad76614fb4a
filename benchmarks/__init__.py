"""What each architecture costs, in tables: formulas from the specs, and measurements on this machine."""

from zoo.cli import interrupt  # noqa: F401 - before torch, so that Ctrl-C is answered while that is imported
