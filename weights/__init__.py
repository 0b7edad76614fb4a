"""Released weights for the zoo's models."""

from weights.loading import load
from weights.saving import save

__all__ = ["load", "save"]
