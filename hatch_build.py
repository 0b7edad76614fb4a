"""Adds docs/blocks.md, which the gallery shows, to a wheel. An editable install reads it from the checkout."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BlocksPage(BuildHookInterface):  # type: ignore[type-arg,misc]
    """Includes the page in wheels, but not in editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"]["docs/blocks.md"] = "benchmarks/gallery/static/blocks.md"
