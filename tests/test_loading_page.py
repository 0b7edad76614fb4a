"""docs/loading.md says the limits that the code has."""

import re
from pathlib import Path

import pytest

from weights import files, gguf_file, header, sources, untrusted
from zoo import config

PAGE = " ".join((Path(__file__).parents[1] / "docs" / "loading.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize(
    "phrase",
    [
        f"config.json above {untrusted.CONFIG_LIMIT // untrusted.MB} MB",
        f"an index above {untrusted.INDEX_LIMIT // untrusted.MB} MB",
        f"more than {untrusted.PIECES:,} values",
        f"longer than itself, or above {untrusted.HEADER_LIMIT // untrusted.MB} MB",
        f"above {header.NAME} characters",
        f"above {config.MOST_LAYERS:,} layers",
        f"above {files.MOST_EXPERTS:,} experts",
        f"above 10^{len(str(files.MOST_PARAMETERS)) - 1} parameters",
        f"more than {gguf_file.MOST_TENSORS:,} tensors or {gguf_file.MOST_FIELDS:,} fields",
        f"version {' or '.join(map(str, gguf_file.VERSIONS))} |",
        f"more than {gguf_file.MOST_ENTRIES:,} entries",
    ],
)
def test_limits(phrase: str) -> None:
    assert phrase in PAGE


def test_what_is_fetched() -> None:
    fetched = re.search(r"\*\*What is fetched\*\*: (.*?) Nothing else", PAGE)
    assert fetched is not None
    named = {name for name in sources.SMALL if "template" not in name and name != files.INDEX}
    assert {word.strip(",") for word in fetched[1].split() if ".json" in word} == named
