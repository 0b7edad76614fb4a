"""Processes that torchrun starts to work on one model together.

    torchrun --nproc-per-node 2 -m zoo.train qwen3 --out run

Without torchrun, every function also works for a single process.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from zoo.core.devices import find_device
from zoo.errors import NotAvailable, UsageError

T = TypeVar("T")
# The other ranks wait while rank 0 reads text or saves; if rank 0 fails, torchrun ends them.
TIMEOUT = timedelta(days=1)


def launched() -> int:
    """Returns the number of processes that torchrun started; 1 if torchrun did not start this process."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_available() and dist.is_torchelastic_launched() else 1


def is_launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return launched() > 1


def ranks() -> int:
    """Returns the number of processes that work together: 1 outside `joined`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns the rank of this process, from 0."""
    return dist.get_rank() if ranks() > 1 else 0


@contextmanager
def joined(name: str, advice: str = "") -> Iterator[torch.device]:
    """Joins the processes that torchrun started into one group and yields this process's device.

    `name` is torch's name of a device or of a kind of device. The group uses nccl on CUDA, with one device per process,
    and gloo on the CPU. Raises the errors of `find_device`, and UsageError for a device that several processes cannot
    share. Raises NotAvailable, followed by `advice`, if another process has ended before this one.
    """
    if not is_launched():
        yield find_device(name)
        return
    device = _own_device(name)
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)
    store, index, count = next(rendezvous("env://", timeout=TIMEOUT))
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        store=store,
        rank=index,
        world_size=count,
        timeout=TIMEOUT,
        device_id=device if on_cuda else None,
    )
    try:
        yield device
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            raise NotAvailable(f"another process of this run has ended{advice}") from error
        raise
    dist.destroy_process_group()  # not after an error: other processes may be waiting for this one


def _own_device(name: str) -> torch.device:
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or index:
        raise UsageError(f"several processes work on --device cpu or cuda, not on {name}")
    return find_device(f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" else name)


def may_report_error() -> bool:
    """Whether this process prints its final error: True only in the first process that calls this function.

    Most other processes fail for the same reason, or because they wait for the failed one.
    """
    if not is_launched():
        return True
    store, _, _ = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun may restart them with the same store
    return store.add(f"zoo/errors/{attempt}", 1) == 1


def from_first(compute: Callable[[], T]) -> T:
    """Calls `compute` only in rank 0 and returns its result in every rank."""
    if ranks() == 1:
        return compute()
    sent: list[Any] = [compute() if rank() == 0 else None]
    dist.broadcast_object_list(sent, device=_group_device())
    return sent[0]


def wait_for_all() -> None:
    """Returns once every process has called it."""
    if ranks() > 1:
        dist.barrier()


def local_ranks() -> int:
    """Returns the number of processes on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if ranks() > 1 else 1


def sums(*figures: float) -> list[float]:
    """Returns each figure summed over ranks, in float64."""
    if ranks() == 1:
        return list(figures)
    return summed(torch.tensor(figures, dtype=torch.float64, device=_group_device())).tolist()


def summed(figures: Tensor) -> Tensor:
    """Returns a tensor summed over ranks, without gradients."""
    if ranks() == 1:
        return figures
    total = figures.clone()
    dist.all_reduce(total)
    return total


def _group_device() -> torch.device:
    on_cuda = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
