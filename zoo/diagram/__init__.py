"""A diagram of any model, drawn from its spec: `zoo.diagram.svg(spec, title)`. Imports no command-line package."""

from zoo.diagram.canvas import colours
from zoo.diagram.picture import svg

__all__ = ["colours", "svg"]
