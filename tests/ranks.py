"""A function in processes of its own: in one, or in several that form one group, as torchrun starts them.

A server that has imported what they need forks them, so that each starts in a moment and knows nothing of what the
tests' own process did.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing as mp

from zoo.core import kernels
from zoo.core.processes import joined

SECONDS = 240
SERVER = mp.get_context("forkserver")
# Without the hub's client, which reads its settings as it is imported: a process gets them before.
SERVER.set_forkserver_preload(["tests.models", "torch.distributed.fsdp", "weights.generate"])


def in_process(function: Callable[..., Any], *args: Any, environment: dict[str, str] | None = None) -> Any:
    """What `function(*args)` returns in a process with these environment variables. It is a function of a module, and
    its result plain data."""
    return _results(SECONDS, [(environment or {}, function, args)])[0]


def in_ranks(
    count: int, function: Callable[..., Any], *args: Any, device: str = "cpu", seconds: float = SECONDS
) -> list[Any]:
    """What `function(device, *args)` returns in each rank, None after `seconds`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = dict(WORLD_SIZE=str(count), TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = [group | dict(RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]
    return _results(seconds, [(rank, _in_group, (device, function, args)) for rank in ranks])


def _results(seconds: float, calls: list[tuple[Any, ...]]) -> list[Any]:
    """What `_run` sends of each of these calls, in a process for each."""
    readers, processes = [], []
    for call in calls:
        reader, writer = SERVER.Pipe(duplex=False)
        process = SERVER.Process(target=_run, args=(writer, *call), daemon=True)
        process.start()
        writer.close()
        readers.append(reader)
        processes.append(process)
    try:
        results = [reader.recv() if reader.poll(seconds) else None for reader in readers]
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    assert all(process.exitcode == 0 for process in processes), [process.exitcode for process in processes]
    return results


def _run(writer: Connection, environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    writer.send(function(*args))


def _in_group(device: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    with kernels.using("plain"), joined(device) as own:
        return function(own, *args)
