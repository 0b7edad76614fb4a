"""Several processes that work on one model: torchrun starts them, and they find each other.

    torchrun --nproc-per-node 2 -m zoo.train qwen3 --out run

With one process all functions here do nothing, or what their name says.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from zoo.core.devices import find_device
from zoo.errors import NotAvailable, UsageError

T = TypeVar("T")
# The others wait while rank 0 reads text or saves; torchrun ends them where it fails.
TIMEOUT = timedelta(days=1)


def launched() -> int:
    """How many processes torchrun started; 1 where it did not start this one."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_available() and dist.is_torchelastic_launched() else 1


def is_launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return launched() > 1


def ranks() -> int:
    """The number of processes that work together: 1 outside `joined`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if ranks() > 1 else 0


@contextmanager
def joined(name: str, advice: str = "") -> Iterator[torch.device]:
    """The device of this process, by torch's name for it or for all devices of its kind. Within, the processes that
    torchrun started are one group: nccl on CUDA, a device for each process; gloo on the CPU.

    Raises as `find_device` does, UsageError for a device that several processes cannot use, and NotAvailable where
    another process has ended before this one, with `advice` on what to do then.
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
    dist.destroy_process_group()  # not after an error: the others may be waiting for this process


def _own_device(name: str) -> torch.device:
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or index:
        raise UsageError(f"several processes work on --device cpu or cuda, not on {name}")
    return find_device(f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" else name)


def may_report_error() -> bool:
    """Whether this process prints the error that it ends with: of several, the first one that asks. What one fails at,
    most others fail at too, or at waiting for it."""
    if not is_launched():
        return True
    store, _, _ = next(rendezvous("env://"))
    return store.add(f"zoo/errors/{_attempt()}", 1) == 1


def _attempt() -> str:
    """Which start of the processes this is: torchrun may start them anew, with the same store."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def from_first(compute: Callable[[], T]) -> T:
    """What `compute` gives in rank 0, in every rank, whose own is not called. It goes through JSON: tuples arrive as
    lists."""
    if ranks() == 1:
        return compute()
    value = compute() if rank() == 0 else None
    text = json.dumps(value).encode()
    length = torch.tensor([len(text)], device=_group_device())
    dist.broadcast(length, 0)
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8) if rank() == 0 else torch.empty(0, dtype=torch.uint8)
    sent = data.to(length.device) if rank() == 0 else data.new_empty(int(length), device=length.device)
    dist.broadcast(sent, 0)
    return json.loads(bytes(sent.cpu().numpy())) if rank() else value  # type: ignore[return-value]


def wait_for_all() -> None:
    """Return once every process has come here."""
    if ranks() > 1:
        dist.barrier()


def local_ranks() -> int:
    """How many of the processes are on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if ranks() > 1 else 1


def sums(*figures: float) -> list[float]:
    """Each figure, added up over ranks in float64."""
    if ranks() == 1:
        return list(figures)
    total = torch.tensor(figures, dtype=torch.float64, device=_group_device())
    dist.all_reduce(total)
    return total.tolist()


def summed(figures: Tensor) -> Tensor:
    """A tensor, added up over ranks. Without gradients."""
    if ranks() == 1:
        return figures
    total = figures.clone()
    dist.all_reduce(total)
    return total


def _group_device() -> torch.device:
    on_cuda = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
