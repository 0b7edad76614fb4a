"""Released weights for the zoo's models."""

from weights.loading import load

__all__ = ["load"]
