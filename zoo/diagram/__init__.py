"""A picture of any model, drawn from its spec: `zoo.diagram.svg(spec, title)`."""

from zoo.diagram.picture import svg
from zoo.diagram.style import colours

__all__ = ["colours", "svg"]
