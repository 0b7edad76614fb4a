"""docs/loading.md states the limits in the code."""

import re
from pathlib import Path

import pytest

from weights import sources
from weights.formats import gguf_reader, hf_folder, json_limits, safetensors_header
from zoo.hf import config

PAGE = " ".join((Path(__file__).parents[1] / "docs" / "loading.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize(
    "phrase",
    [
        f"config.json above {json_limits.CONFIG_LIMIT // json_limits.MB} MB",
        f"an index above {json_limits.INDEX_LIMIT // json_limits.MB} MB",
        f"more than {json_limits.MAX_VALUES:,} values",
        f"longer than itself, or above {json_limits.HEADER_LIMIT // json_limits.MB} MB",
        f"above {safetensors_header.MAX_NAME_CHARACTERS} characters",
        f"above {config.MAX_LAYERS:,} layers",
        f"above {hf_folder.MAX_EXPERTS:,} experts",
        f"above 10^{len(str(hf_folder.MAX_PARAMETERS)) - 1} parameters",
        f"more than {gguf_reader.MAX_TENSORS:,} tensors or {gguf_reader.MAX_FIELDS:,} fields",
        f"version {' or '.join(map(str, gguf_reader.VERSIONS))} |",
        f"more than {gguf_reader.MAX_ENTRIES:,} entries",
    ],
)
def test_limits(phrase: str) -> None:
    assert phrase in PAGE


def test_what_is_fetched() -> None:
    fetched = re.search(r"\*\*What is fetched\*\*: (.*?) Nothing else", PAGE)
    assert fetched is not None
    named = {name for name in sources.SMALL_FILES if "template" not in name and name != hf_folder.INDEX}
    assert {word.strip(",") for word in fetched[1].split() if ".json" in word} == named
