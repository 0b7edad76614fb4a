"""A function in processes of its own: in one, or in several that form one group, as torchrun starts them.

A server that has imported what they need forks them, so that each starts in a moment and knows nothing of what the
tests' own process did.
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
    """What `function(*args)` returns in a process with these environment variables. It is a function of a module, and
    its result plain data."""
    return _results(SECONDS, [(environment or {}, function, args)])[0]


def as_launched(count: int, function: Callable[..., Any], *args: Any, seconds: float = SECONDS) -> list[Any]:
    """What `function(*args)` returns in each of the processes that torchrun would start, None after `seconds`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = dict(WORLD_SIZE=str(count), TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = [group | dict(RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]
    return _results(seconds, [(rank, function, args) for rank in ranks])


def in_ranks(
    count: int, function: Callable[..., Any], *args: Any, device: str = "cpu", seconds: float = SECONDS
) -> list[Any]:
    """What `function(device, *args)` returns in each rank of one group, None after `seconds`."""
    return as_launched(count, _in_group, device, function, args, seconds=seconds)


def command(module: str, *args: str) -> tuple[int, str, str]:
    """The exit code of a command line, and what it writes to stdout and stderr: for a process of its own."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)  # another test may have imported it
        app = runpy.run_module(module)["app"]
        code = exit_code(app, f"python -m {module}", args)
    return code, out.getvalue(), err.getvalue()


def _results(seconds: float, calls: list[tuple[Any, ...]]) -> list[Any]:
    """What `_run` sends of each of these calls, in a process for each."""
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
