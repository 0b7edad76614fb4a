"""A diagram as a file: SVG, PNG or PDF, by the file's suffix."""

from pathlib import Path

from zoo.errors import UsageError, require_package

PNG_SCALE = 2.0  # pixels per unit of the drawing


def encode(drawing: str, path: Path) -> bytes:
    """Returns the content of the file `path` for a drawing with literal colours (theme "light" or "dark"). PNG has two
    pixels per unit. Raises UsageError for another suffix, and NotAvailable if the package that draws PNG and PDF is
    missing."""
    suffix = path.suffix.lower()
    if suffix == ".svg":
        return f"{drawing}\n".encode()
    if suffix not in (".png", ".pdf"):
        raise UsageError(f"{path} must end in .svg, .png or .pdf")
    require_package("vl_convert", "gallery")
    import vl_convert

    content: bytes = (
        vl_convert.svg_to_png(drawing, scale=PNG_SCALE) if suffix == ".png" else vl_convert.svg_to_pdf(drawing)
    )
    return content
