"""A diagram of any model, drawn from its spec: `zoo.diagram.svg(spec, title)`. Imports no command-line package."""

from zoo.diagram.canvas import encode
from zoo.diagram.figure import callouts, marked_elements, svg
from zoo.diagram.palette import Theme, colours

__all__ = ["Theme", "callouts", "colours", "encode", "marked_elements", "svg"]
