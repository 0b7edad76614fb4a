"""Packages that only some sources need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from zoo.errors import NotAvailable


def need(package: str, extra: str) -> Any:
    """The package, or NotAvailable with the line to type: it comes with an extra of this project."""
    try:
        return import_module(package)
    except ImportError as error:
        raise NotAvailable(f"this needs the package {package}: pip install 'zoo-llm[{extra}]'") from error
