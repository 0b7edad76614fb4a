"""Typeset text, and files of diagrams: several programs draw the same picture, in its colours."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from zoo import spec
from zoo.diagram import encode, svg
from zoo.diagram.canvas import structure, typeset
from zoo.diagram.palette import PALETTE
from zoo.errors import NotAvailable, UsageError

vl_convert = pytest.importorskip("vl_convert")
Image = pytest.importorskip("PIL.Image")
SHOWN = ("gpt-oss-20b", "deepseek-v4-flash-284b")
THEMES = ("light", "dark")
TOLERANCE = 3.0  # mean difference of a channel, of 255, after averaging: programs have other fonts and smoothing
SMALL = (190, 300)  # pixels that pictures are averaged to, so that a letter's shape does not count


def picture(name: str, theme: str) -> str:
    return svg(spec(name), name, theme=theme, callouts=(("attn", "A sentence."),))  # type: ignore[arg-type]


def opened(png: bytes) -> Any:
    return Image.open(io.BytesIO(png)).convert("RGB")


def assert_in_colours(image: Any, theme: str) -> None:
    """Asserts that most of the picture is paper, and that the colours of blocks are there."""
    pixels = image.width * image.height
    colours = {colour: n for n, colour in image.getcolors(maxcolors=pixels)}

    def share(name: str) -> float:
        text = PALETTE[name][theme == "dark"]
        return colours.get(tuple(int(text[i : i + 2], 16) for i in (1, 3, 5)), 0) / pixels

    assert share("paper") > 0.25
    assert all(share(name) > 0.01 for name in ("card", "attn", "ffn"))
    assert all(share(name) > 0.0002 for name in ("ink", "norm", "table", "rope", "ffn-experts", "reach-window"))
    black = colours.get((0, 0, 0), 0) / pixels
    assert black < 0.001


def difference(one: Any, other: Any) -> float:
    """The mean difference of a channel between two pictures, averaged to one small size."""
    first, second = (image.resize(SMALL, Image.Resampling.BOX).tobytes() for image in (one, other))
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", SHOWN)
def test_a_file_is_the_same_in_resvg_and_mupdf(name: str, theme: str) -> None:
    """vl-convert draws with resvg, which knows no CSS variables. MuPDF shares no code with it or with Chromium, and its
    wheel needs no system library."""
    drawing = picture(name, theme)
    drawn = opened(encode(drawing, Path("a.png")))
    assert_in_colours(drawn, theme)
    pymupdf = pytest.importorskip("pymupdf")
    page = pymupdf.open(stream=drawing.encode(), filetype="svg")[0]
    image = opened(page.get_pixmap(matrix=pymupdf.Matrix(2, 2)).tobytes("png"))
    assert_in_colours(image, theme)
    assert difference(image, drawn) < TOLERANCE


def test_a_page_s_drawing_is_not_for_files() -> None:
    """The check above can fail: a style sheet with variables gives another picture."""
    with pytest.raises(AssertionError):
        assert_in_colours(opened(vl_convert.svg_to_png(svg(spec(SHOWN[0]), "", theme="auto"), scale=2.0)), "dark")


def test_png_has_two_pixels_per_unit_and_pdf_is_one_page() -> None:
    drawing = picture(SHOWN[0], "light")
    image = opened(encode(drawing, Path("a.PNG")))
    assert image.width == 2 * 760
    pdf = encode(drawing, Path("a.pdf"))
    assert pdf.startswith(b"%PDF-")
    assert pdf.count(b"/Type/Page\n") + pdf.count(b"/Type /Page\n") <= 1
    assert encode(drawing, Path("a.svg")) == f"{drawing}\n".encode()


def test_another_suffix_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"a.gif must end in .svg, .png or .pdf"):
        encode("<svg/>", Path("a.gif"))


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_a_missing_package_is_named(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    expected = r"needs the package vl_convert; in the zoo's folder: pip install -e '\.\[gallery\]'"
    with pytest.raises(NotAvailable, match=expected):
        encode("<svg/>", Path(f"a{suffix}"))
    assert encode("<svg/>", Path("a.svg")) == b"<svg/>\n"


@pytest.mark.browser
@pytest.mark.xdist_group("gallery")
@pytest.mark.parametrize("theme", THEMES)
def test_chromium_draws_the_same(theme: str, browser: Any, tmp_path: Path) -> None:
    """A post or a README shows the file as an image, here to a reader with a dark scheme."""
    drawing = picture(SHOWN[0], theme)
    (tmp_path / "a.svg").write_text(drawing, encoding="utf-8")
    page = browser.new_page(device_scale_factor=2, color_scheme="dark", viewport={"width": 760, "height": 400})
    (tmp_path / "a.html").write_text('<body style="margin:0"><img src="a.svg" style="display:block">')
    page.goto((tmp_path / "a.html").as_uri())
    image = opened(page.locator("img").screenshot())
    page.close()
    assert_in_colours(image, theme)
    assert difference(image, opened(encode(drawing, Path("a.png")))) < TOLERANCE


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("window 4096", "window 4,096"),
        ("RoPE 10k (YaRN x40 from 4096)", "RoPE 10k (YaRN ×40 from 4,096)"),
        ("scale 168^-1/2", "scale 1/√168"),
        ("scale 1.6384e+04^-1/2", "scale 1/√16,384"),
        ("scale 16384^-1/2", "scale 1/√16,384"),
        ("scale 1^-1/2", "scale 1"),
        ("queries x(1 + 0.1 ln(1 + position/16,384))", "queries ×(1 + 0.1 ln(1 + position/16,384))"),
        ("sigmoid top-8 router, weights x2.5", "sigmoid top-8 router, weights ×2.5"),
        ("max of 0.0001", "max of 0.0001"),
        ("0.00012", "0.00012"),
    ],
)
def test_descriptions_are_typeset(text: str, printed: str) -> None:
    assert typeset(text) == printed


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("window 128", "window 4,096"),
        ("RoPE 1M", "RoPE 500k"),
        ("top-8 router ×2.5", "top-4 router ×1"),
        ("3 MiB", "1 GiB"),
    ],
)
def test_numbers_are_no_structure(text: str, other: str) -> None:
    assert structure(text) == structure(other) != structure("something else")
