"""The check of docstrings in `make check`."""

from __future__ import annotations

from tests.docstrings import refused

REFUSED = ["Of a model, the size.", "What a pass changes.", "The same of columns.", "By what it sorts.", "As one."]
ACCEPTED = ["Returns the size of a model.", "Offsets of the rows.", "Assigns ranks.", "Whether it fits.", "A model."]


def test_an_opening_word_is_refused_in_docstrings_and_help_texts() -> None:
    for text in (*REFUSED, *ACCEPTED):
        for source in (f'"""{text}"""', f'class A:\n    """{text}"""', f"option(help={text!r})"):
            assert [found for _, found in refused(source)] == [text] * (text in REFUSED), text
