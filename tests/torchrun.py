"""Runs commands under torchrun, in two processes or as two machines would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def start(module: str, *args: object) -> subprocess.Popen[str]:
    """`torchrun --nproc-per-node 2 -m MODULE ARGS`, with a thread for each process."""
    return _start(["--standalone", "--nproc-per-node", "2"], module, *args)


def start_nodes(nodes: int, module: str, *args: object) -> list[subprocess.Popen[str]]:
    """The same as `nodes` machines would: a torchrun for each, with one process, that meet at an address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = ["--nnodes", str(nodes), "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    return [_start([*said, "--node-rank", str(node)], module, *args) for node in range(nodes)]


def _start(said: list[str], module: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TORCHRUN, *said, "-m", module, *map(str, args)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # what a terminal sends Ctrl-C to
    )


def errors(err: str) -> list[str]:
    """Returns the command's stderr without torchrun's own report."""
    return [line for line in err.splitlines() if line.startswith("error:")]
