"""Trains on several devices: torchrun starts a process for each, and FSDP2 shards the model over them.

    torchrun --nproc-per-node 2 -m zoo.train qwen3 --out run

Each process ("rank") holds a part of every parameter, gradient and optimiser moment, and computes its own rows of each
batch. A layer's parameters are gathered when it runs (Zhao et al. 2023, "PyTorch FSDP"). Gradients and figures are
those of all rows, as on one device, with one exception. A load-balancing loss is the mean over ranks of the losses on
their own rows, like the mean over the pieces of an accumulated step. n ranks therefore train as one process does with n
times as many pieces.

Under autocast a layer's bfloat16 weights are kept whole for the backward pass, two bytes per parameter in each rank.
Recomputing layers (activation checkpointing) avoids it.

Rank 0 alone prepares, prints and writes; every rank reads the folder of the run, which several machines must share. In
a single process these functions do nothing, or act on the whole.
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
    """Raises UsageError for a model that several ranks cannot train in batches of this many sequences."""
    if ranks() == 1:
        return
    if not hasattr(model, "reshard"):
        raise UsageError(f"a model that {ranks()} processes train must be sharded: zoo.training.distributed.sharded")
    if batch % ranks() or batch // ranks() < accumulate:
        pieces = f" in {accumulate} pieces each" if accumulate > 1 else ""
        raise UsageError(f"a batch of {batch} sequences cannot be divided among {ranks()} processes{pieces}")


def sharded(
    spec: Decoder,
    device: torch.device,
    build: Callable[[], Model] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Returns this rank's part of a model, on its own `device`.

    Every layer is a unit of FSDP; the embedding, the last norm and the head are another. The weights come from the
    model of this `dtype` that `build` makes on the CPU, in rank 0 alone; without `build` they are uninitialised.

    All ranks run the model at the same time and on equally many rows, also to generate or without gradients.
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
        for name, buffer in model.named_buffers():  # whole on every rank
            if built:
                buffer.copy_(built.get_buffer(name))
            dist.broadcast(buffer, 0)
    return model


def _reshard(model: Any, inputs: Any, output: Any) -> None:
    """Reshards the embedding and the head after a pass without gradients: FSDP keeps them whole until the backward
    pass."""
    if not torch.is_grad_enabled():
        model.reshard()


@torch.no_grad()
def _spread(model: Model, whole: Mapping[str, Tensor], device: torch.device) -> None:
    """Gives each rank its part of the parameters that rank 0 holds."""
    from torch.distributed.tensor import distribute_tensor

    parameter: Any
    for name, parameter in model.named_parameters():
        value = whole[name].detach() if rank() == 0 else torch.empty(parameter.shape, dtype=parameter.dtype)
        parameter.copy_(distribute_tensor(value.to(device), parameter.device_mesh, parameter.placements))


def own_part(whole: Tensor, like: Any) -> Tensor:
    """Returns a tensor that all ranks hold, on the device of `like` and sharded in the same way. A scalar stays
    whole."""
    if not whole.ndim or not hasattr(like, "placements"):
        return whole.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole(tensor: Any) -> Tensor:
    """Returns all of a tensor that may be sharded, on its device. Every rank must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Returns sharded tensors by name, whole and on the CPU in rank 0, which gathers one at a time; the other ranks get
    none. A single process gets its own."""
    if ranks() == 1:
        return dict(tensors)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        full = whole(tensor)
        if rank() == 0:
            found[name] = full.cpu()
    return found


def whole_model(model: Model) -> Model | None:
    """Returns the model with all its weights, in rank 0 on the CPU; None in the others. A single process gets the model
    itself."""
    if ranks() == 1:
        return model
    tensors = gathered(model.state_dict().items())
    if rank():
        return None
    full = catalog.allocate(model.spec, "meta")
    full.load_state_dict(tensors, assign=True)
    fill_buffers(full)
    return full
