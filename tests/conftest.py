"""Settings of every test: no network, few threads, the same random numbers on every run."""

import os

# Before anything imports torch or the hub client, which read these once.
WORKER = "PYTEST_XDIST_WORKER" in os.environ
THREADS = 1 if WORKER else min(2, os.cpu_count() or 1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # HF_HUB_OFFLINE=0 pytest -m network
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # for the commands that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ZOO_KERNELS", "plain")  # nothing is measured; tests of other kernels say so (zoo.kernels.using)

import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import toys
from zoo.core.inductor import load_compiler

torch.set_num_threads(THREADS)
load_compiler()  # under a C locale, before a test that has torch compile by itself
pytest_plugins = ["tests.left_out"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]

# --hypothesis-profile=thorough looks further, and elsewhere on each run.
ANY_SPEED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}  # no test fails on a slow machine
settings.register_profile("zoo", **ANY_SPEED, max_examples=25, derandomize=True)
settings.register_profile("thorough", **ANY_SPEED, max_examples=500, print_blob=True)
settings.load_profile("zoo")


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def _float64() -> Iterator[None]:
    """Within a test, tensors and modules without a named dtype are in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns a function from a preset's name to a folder with its toy form as transformers writes it, with random
    parameters. Tests must not change the folder."""

    @cache
    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        toys.reference(name).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The headless Chromium of this machine."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[test]'")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is on the PATH")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()
