"""What a page holds for its scripts: data, diagrams, charts."""

from __future__ import annotations

import json
import re
import zlib
from base64 import b64decode
from typing import Any


def packed(text: str) -> dict[str, Any]:
    """The contents of the page's packed part."""
    (content,) = re.findall(r'<script type="text/plain" id="packed">([A-Za-z0-9+/=]*)</script>', text)
    found: dict[str, Any] = json.loads(zlib.decompress(b64decode(content)))
    return found
