"""Trains on several devices: torchrun starts a process for each, and FSDP2 shards the model over them.

torchrun --nproc-per-node 2 -m zoo.train qwen3 --out run

Each process ("rank") holds a part of every parameter, gradient and optimiser moment, and computes its own rows of each
batch. A layer's parameters are gathered when it runs (Zhao et al. 2023, "PyTorch FSDP"). Gradients and metrics are
computed over all rows, as on one device, with one exception: each rank computes the load-balancing loss of its own
rows, and the mean over ranks is used. The micro-batches of an accumulated step are treated in the same
way. So n ranks train like one process with n times as many micro-batches.

Under autocast, every rank keeps whole bfloat16 weights of each layer until the backward pass, which takes two bytes per
parameter. Activation checkpointing avoids this.

Only rank 0 prepares data, prints and writes. Every rank reads the folder of the run, so several machines must share it.
In a single process, the functions here return the whole model or tensors, or do nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from zoo import catalog
from zoo.core.processes import rank, ranks
from zoo.errors import UsageError
from zoo.model.decoder import Decoder
from zoo.model.module import Model, fill_buffers


def require_ranks(model: Model, batch: int, accumulate: int) -> None:
    """Raises UsageError if several ranks cannot train this model, or cannot divide a batch of this many sequences."""
    if ranks() == 1:
        return
    if not hasattr(model, "reshard"):
        raise UsageError(f"a model that {ranks()} processes train must be sharded: zoo.training.distributed.sharded")
    if batch % ranks() or batch // ranks() < accumulate:
        micro_batches = f" in {accumulate} micro-batches each" if accumulate > 1 else ""
        raise UsageError(f"a batch of {batch} sequences cannot be divided among {ranks()} processes{micro_batches}")


def sharded(
    spec: Decoder,
    device: torch.device,
    build: Callable[[], Model] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Returns this rank's part of a model, on its own `device`.

    Every layer is an FSDP unit; the embedding, the last norm and the head form another. Rank 0 alone calls `build`,
    which returns the whole model in this `dtype` on the CPU. Its weights are then distributed. Without `build`, the
    weights are uninitialised.

    All ranks must run the model at the same time and on the same number of rows. This also holds for generation and for
    passes without gradients.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks(),))
    model = catalog.allocate(spec, "meta", dtype)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device=device)
    fill_buffers(model, device, every=True)
    model.register_forward_hook(_reshard)
    if build is not None:
        built = build() if rank() == 0 else None
        _spread(model, dict(built.named_parameters()) if built else {}, device)
        for name, buffer in model.named_buffers():  # buffers are not sharded
            if built:
                buffer.copy_(built.get_buffer(name))
            dist.broadcast(buffer, 0)
    return model


def _reshard(model: Any, inputs: Any, output: Any) -> None:
    """Reshards the embedding and the head after a pass without gradients. FSDP would keep them whole until a backward
    pass."""
    if not torch.is_grad_enabled():
        model.reshard()


@torch.no_grad()
def _spread(model: Model, whole: Mapping[str, Tensor], device: torch.device) -> None:
    """Distributes the parameters `whole`, which only rank 0 has, to all ranks."""
    from torch.distributed.tensor import distribute_tensor

    parameter: Any
    for name, parameter in model.named_parameters():
        value = whole[name].detach() if rank() == 0 else torch.empty(parameter.shape, dtype=parameter.dtype)
        parameter.copy_(distribute_tensor(value.to(device), parameter.device_mesh, parameter.placements))


def own_part(whole: Tensor, like: Any) -> Tensor:
    """Returns this rank's part of a tensor that all ranks hold, sharded like `like` and on its device. A scalar stays
    whole."""
    if not whole.ndim or not hasattr(like, "placements"):
        return whole.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole(tensor: Any) -> Tensor:
    """Returns the whole of a tensor, which may be sharded, on its device. Every rank must call this function."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the whole tensors by name in rank 0, on the CPU, and nothing in the other ranks. One tensor is gathered
    at a time. A single process gets its tensors unchanged."""
    if ranks() == 1:
        return dict(tensors)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        full = whole(tensor)
        if rank() == 0:
            found[name] = full.cpu()
    return found


def whole_model(model: Model) -> Model | None:
    """Returns the whole model in rank 0, on the CPU, and None in the other ranks. A single process gets its model
    unchanged."""
    if ranks() == 1:
        return model
    tensors = gathered(model.state_dict().items())
    if rank():
        return None
    full = catalog.allocate(model.spec, "meta")
    full.load_state_dict(tensors, assign=True)
    fill_buffers(full)
    return full
