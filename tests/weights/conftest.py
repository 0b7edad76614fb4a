"""Checkpoints as transformers writes them, once for all tests of a session."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import zoo
from tests.reference import toy_config, toy_reference


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A preset's name -> a folder with its toy form, every parameter random. Not to be changed."""

    @cache
    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        toy_reference(toy_config(name, layers=len(zoo.spec(name, tiny=True).layers))).save_pretrained(folder)
        return folder

    return save
