"""Places of the residual stream, the blocks on a branch and their blow-ups in a drawing, on a page and on a phone."""

from dataclasses import dataclass

GAP, BAR, TABLE, PLUS = 12.0, 21.0, 28.0, 7.5  # gap between boxes, height of a norm and of a table, radius of a sum
TAP, PANEL_TOP = 14.0, 5.0  # y of the start of a branch and of a blow-up, in a row


@dataclass(frozen=True)
class Layout:
    """Horizontal places: the frame of a layer, the residual stream, the blocks on a branch, the blow-ups."""

    width: float
    left: float  # of the whole drawing
    frame_end: float
    stream: float
    rail: float  # of a branch
    block: float
    block_end: float
    panel: float
    panel_end: float

    @property
    def narrow(self) -> bool:
        """Whether blow-ups stand below their blocks."""
        return self.panel < self.frame_end

    @property
    def inner_width(self) -> float:
        """The width of a block's inside: in its blow-up, or in its box if blow-ups stand below."""
        return (self.block_end - self.block if self.narrow else self.panel_end - self.panel) - 24


WIDE = Layout(760, 22, 292, 46, 98, 76, 280, 326, 738)
NARROW = Layout(360, 10, 350, 27, 76, 48, 342, 10, 350)
