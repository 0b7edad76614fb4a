"""The published schema of `--json`."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator

from benchmarks.output.report import DOCS

VALIDATOR = Draft202012Validator(json.loads((DOCS / "benchmarks.schema.json").read_text(encoding="utf-8")))


def validate(document: Any) -> None:
    """Checks that a document follows the schema."""
    errors = [f"{list(error.path)}: {error.message[:200]}" for error in VALIDATOR.iter_errors(document)]
    assert errors == []
