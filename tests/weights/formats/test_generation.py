"""Published settings of generation: which are read, which are off, and which are refused."""

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weights.formats.generation import generation_config, generation_fields
from zoo.errors import MalformedError
from zoo.model.sampling import GenerationConfig

WHERE = Path("generation_config.json")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, GenerationConfig()),
        ({"eos_token_id": 2}, GenerationConfig((2,))),
        ({"eos_token_id": [1, 106]}, GenerationConfig((1, 106))),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.95}, GenerationConfig((), 0.6, None, 0.95)),
        ({"do_sample": True, "top_k": 64, "top_p": 0.95}, GenerationConfig((), 1.0, 64, 0.95)),
        ({"temperature": 0.15}, GenerationConfig((), 0.15)),
        ({"do_sample": True}, GenerationConfig((), 1.0)),
        ({"do_sample": True, "temperature": 1, "top_k": 0, "top_p": 1.0}, GenerationConfig((), 1.0)),
        ({"do_sample": True, "temperature": None, "top_k": -1, "top_p": None}, GenerationConfig((), 1.0)),
        ({"do_sample": False, "temperature": 0.6, "top_k": 20}, GenerationConfig()),
        ({"do_sample": True, "temperature": 0.0, "top_k": 20}, GenerationConfig()),
    ],
)
def test_what_is_read(settings: dict[str, Any], expected: GenerationConfig) -> None:
    assert generation_config(settings, WHERE) == expected


@given(
    st.builds(
        GenerationConfig,
        st.lists(st.integers(0, 10**6)).map(tuple),
        st.floats(0.01, 5),
        st.none() | st.integers(1, 500),
        st.none() | st.floats(0.01, 0.99),
    )
)
def test_what_is_written_is_read_back(config: GenerationConfig) -> None:
    assert generation_config(generation_fields(config), WHERE) == config


@pytest.mark.parametrize(
    ("settings", "phrase"),
    [
        ({"eos_token_id": [1, True]}, "eos_token_id must be a token id or a list of them, got [1, True]"),
        ({"temperature": "0.6"}, "temperature must be a number of at least 0, got '0.6'"),
        ({"temperature": -1}, "temperature must be a number of at least 0, got -1"),
        ({"temperature": float("inf")}, "temperature must be a number of at least 0, got inf"),
        ({"top_k": [5]}, "top_k must be a number of at least -1, got [5]"),
        ({"top_p": True}, "top_p must be a number of at least -1, got True"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], phrase: str) -> None:
    with pytest.raises(MalformedError) as caught:
        generation_config(settings, WHERE)
    assert str(caught.value) == f"{WHERE}: {phrase}"


def test_a_setting_that_is_not_applied_is_logged_unless_it_is_off(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "weights"):
        generation_config({"repetition_penalty": 1.05, "min_p": 0, "num_beams": 1, "typical_p": None}, WHERE)
    assert caplog.messages == ["generation_config.json: repetition_penalty=1.05 is not applied"]
