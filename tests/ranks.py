"""A function in several processes that form one group, as torchrun starts them."""

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


def in_ranks(
    count: int, function: Callable[..., Any], *args: Any, device: str = "cpu", seconds: float = SECONDS
) -> list[Any]:
    """What `function(device, *args)` returns in each rank, None after `seconds`. It is a function of a module, and its
    result plain data."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    readers, processes = [], []
    for rank in range(count):
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(writer, rank, count, port, device, function, args), daemon=True)
        process.start()
        writer.close()
        readers.append(reader)
        processes.append(process)
    try:
        results = [reader.recv() if reader.poll(seconds) else None for reader in readers]
    finally:
        for process in processes:
            process.join(60)  # on a busy machine it takes a while until all have left the group
            process.kill()
    assert all(process.exitcode == 0 for process in processes), [process.exitcode for process in processes]
    return results


def _run(
    writer: Connection, rank: int, count: int, port: int, device: str, function: Callable[..., Any], args: Any
) -> None:
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), TORCHELASTIC_RUN_ID="test")
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    with kernels.using("plain"), joined(device) as own:
        writer.send(function(own, *args))
