"""docs/loading.md states the limits in the code."""

import re
from pathlib import Path

import pytest

from weights import sources
from weights.formats import gguf_file, gguf_tokenizer, hf_folder, untrusted
from zoo.hf import config

PAGE = " ".join((Path(__file__).parents[1] / "docs" / "loading.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize(
    "phrase",
    [
        f"config.json above {untrusted.CONFIG_LIMIT // untrusted.MB} MB",
        f"an index above {untrusted.INDEX_LIMIT // untrusted.MB} MB",
        f"more than {untrusted.MAX_VALUES:,} values",
        f"longer than itself, or above {untrusted.HEADER_LIMIT // untrusted.MB} MB",
        f"above {untrusted.MAX_NAME_CHARACTERS} characters",
        f"above {config.MAX_LAYERS:,} layers",
        f"above {hf_folder.MAX_EXPERTS:,} experts",
        f"above 10^{len(str(hf_folder.MAX_PARAMETERS)) - 1} parameters",
        f"more than {gguf_file.MAX_TENSORS:,} tensors or {gguf_file.MAX_FIELDS:,} fields",
        f"version {' or '.join(map(str, gguf_file.VERSIONS))} |",
        f"more than {gguf_file.MAX_ENTRIES:,} entries",
        f"more than {gguf_file.MAX_LIST:,} entries or {gguf_file.MAX_LIST_BYTES // untrusted.MB} MB",
        f"a token above {gguf_tokenizer.MAX_TOKEN:,} characters",
        f"merge in more than {gguf_tokenizer.MAX_MERGES:,} ways",
    ],
)
def test_limits(phrase: str) -> None:
    assert phrase in PAGE


def test_what_is_fetched() -> None:
    fetched = re.search(r"\*\*What is fetched\*\*: (.*?) Nothing else", PAGE)
    assert fetched is not None
    named = {name for name in sources.SMALL_FILES if "template" not in name and name != hf_folder.INDEX}
    assert {word.strip(",") for word in fetched[1].split() if ".json" in word} == named
