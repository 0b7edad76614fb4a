"""A picture of any model, as SVG."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from zoo import names, spec
from zoo.diagram import svg

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", names())
def test_it_is_well_formed_and_says_what_it_is(name) -> None:
    root = ElementTree.fromstring(svg(spec(name), name, prefix="a-"))
    assert root.find(f"{SVG}title").text == name
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "a-title a-desc"
