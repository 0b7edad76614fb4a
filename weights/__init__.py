"""Released weights for the zoo's models."""

from zoo.cli import interrupt  # noqa: F401 - before torch, so that Ctrl-C works while torch is imported

# isort: split
from weights.loading import load
from weights.reference.comparison import parity
from weights.reference.own_spec import SpecReport
from weights.reference.report import ParityReport
from weights.saving import save

__all__ = ["ParityReport", "SpecReport", "load", "parity", "save"]
