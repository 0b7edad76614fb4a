"""Runs a function in separate processes: in one, or in several that form one group, as torchrun starts them. They are
forked from a server that has imported their packages, so each starts in a moment and has no state of the tests' own
process.
"""

from __future__ import annotations

import os
import runpy
import socket
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing as mp

from zoo.cli.runner import exit_code
from zoo.core import kernels, processes

SECONDS = 240
SERVER = mp.get_context("forkserver")
# Without the hub's client, which reads its settings as it is imported: a process gets them before.
SERVER.set_forkserver_preload(["tests.models", "torch.distributed.fsdp", "weights"])


def in_process(function: Callable[..., Any], *args: Any, environment: dict[str, str] | None = None) -> Any:
    """Returns the result of `function(*args)` in a process with these environment variables. The function must be
    defined in a module, and its result must be plain data."""
    return _results(SECONDS, [(environment or {}, function, args)])[0]


def as_launched(count: int, function: Callable[..., Any], *args: Any, seconds: float = SECONDS) -> list[Any]:
    """Returns the results of `function(*args)` in the processes that torchrun would start; None for a process that
    takes longer than `seconds`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = dict(WORLD_SIZE=str(count), TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = [group | dict(RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]
    return _results(seconds, [(rank, function, args) for rank in ranks])


def in_ranks(
    count: int, function: Callable[..., Any], *args: Any, device: str = "cpu", seconds: float = SECONDS
) -> list[Any]:
    """Returns the results of `function(device, *args)` in the ranks of one group; None for a rank that takes longer
    than `seconds`."""
    return as_launched(count, _in_group, device, function, args, seconds=seconds)


def command(module: str, *args: str) -> tuple[int, str, str]:
    """Runs a command line in this process, which must be a separate one. Returns its exit code, its stdout and its
    stderr."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)  # another test may have imported it
        app = runpy.run_module(module)["app"]
        code = exit_code(app, f"python -m {module}", args)
    return code, out.getvalue(), err.getvalue()


def _results(seconds: float, calls: list[tuple[Any, ...]]) -> list[Any]:
    """Returns what `_run` sends for each of these calls, each in its own process."""
    readers, started = [], []
    for call in calls:
        reader, writer = SERVER.Pipe(duplex=False)
        process = SERVER.Process(target=_run, args=(writer, *call), daemon=True)
        process.start()
        writer.close()
        readers.append(reader)
        started.append(process)
    try:
        results = [reader.recv() if reader.poll(seconds) else None for reader in readers]
    finally:
        for process in started:
            process.join(60)  # on a busy machine it takes a while until all have left the group
            process.kill()
    assert all(process.exitcode == 0 for process in started), [process.exitcode for process in started]
    return results


def _run(writer: Connection, environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    writer.send(function(*args))


def _in_group(device: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    with kernels.using("plain"), processes.joined(device) as own:
        return function(own, *args)
