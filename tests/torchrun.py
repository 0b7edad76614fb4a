"""Commands as torchrun starts them, in two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(module: str, *args: object) -> subprocess.Popen[str]:
    """`torchrun --nproc-per-node 2 -m MODULE ARGS`, with a thread for each process."""
    return subprocess.Popen(
        [*TORCHRUN, "-m", module, *map(str, args)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # what a terminal sends Ctrl-C to
    )


def errors(err: str) -> list[str]:
    """What the command said, without torchrun's own report."""
    return [line for line in err.splitlines() if line.startswith("error:")]
