"""What holds for every test: no network, few threads, the same random numbers on every run."""

import os

# Before anything imports torch or the hub client, which read these once.
WORKER = "PYTEST_XDIST_WORKER" in os.environ
THREADS = 1 if WORKER else min(2, os.cpu_count() or 1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # HF_HUB_OFFLINE=0 pytest -m network
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # for the commands that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ZOO_KERNELS", "plain")  # nothing is measured; tests of other kernels say so (zoo.kernels.using)

import random

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(THREADS)

# --hypothesis-profile=thorough looks further, and elsewhere on each run.
settings.register_profile("zoo", deadline=None, max_examples=25, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=500, print_blob=True)
settings.load_profile("zoo")


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    torch.manual_seed(0)
