"""A reference without weights, its parts filled and emptied one by one from any source that the loader reads.

For models too large for memory, and for checkpoints that transformers does not read exactly, or reads more of than the
text part: packed weights (its fp8 differs in blocks at the edge) and multimodal wrappers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weights.loading import Source, open_source
from weights.matching import EMBED, HEAD, Entry, text_names
from weights.parity_reference import Reference, config_of, quiet, transformers
from zoo.errors import MalformedError

EXPERTS = ".mlp.experts."


def shell(source: Source, dtype: torch.dtype) -> Any:
    """The reference's modules, every parameter on the meta device, the buffers that no checkpoint holds computed."""
    config = config_of(source).get_text_config()
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # it is of the file: what is filled in is unpacked
    with quiet(), torch.device("meta"):
        model = transformers().AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    computed = {}
    for name, buffer in model.named_non_persistent_buffers():
        place, _, leaf = name.rpartition(".")
        computed[place] = model.get_submodule(place)
        computed[place]._buffers[leaf] = torch.empty(buffer.shape, dtype=buffer.dtype)
    for module in computed.values():
        model._init_weights(module)
    return model.eval()


def filled_reference(source: Source, dtype: torch.dtype) -> Reference:
    """The reference in memory, its weights read as the zoo reads them."""
    model = shell(source, dtype)
    stored = text_names(source.path, source.entries())
    fill_part(model, "", source, stored)
    return Reference(model, "text part, weights read by the zoo")


def fill_part(module: nn.Module, prefix: str, source: Source, stored: Mapping[str, Entry]) -> None:
    """Fill a part of the reference, called `prefix` in the whole."""
    wanted = {name: (f"{prefix}.{name}" if prefix else name, like) for name, like in module.state_dict().items()}
    module.load_state_dict(
        {name: _tensor(full, like, source, stored) for name, (full, like) in wanted.items()}, assign=True
    )


def fill_afresh(module: nn.Module, prefix: str, source: Source) -> None:
    """The same from the source opened once more: once emptied, nothing holds the pages of its files."""
    opened = open_source(source.path)
    fill_part(module, prefix, opened, text_names(opened.path, opened.entries()))


def empty(module: nn.Module) -> None:
    """Give back the memory of a part."""
    bare = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(bare, assign=True)


def _tensor(name: str, like: Tensor, source: Source, stored: Mapping[str, Entry]) -> Tensor:
    """The tensor that transformers calls `name`: a tied head and stacked experts have other names in files."""

    def get(name: str) -> Tensor:
        return source.get(stored[name].name, dtype=like.dtype)

    if name in stored:
        return get(name)
    if name == HEAD:
        return get(EMBED)
    if f"{name}_blocks" in stored:  # MXFP4 has the last two axes the other way round
        return get(f"{name}_blocks").mT.contiguous()
    place, found, which = name.partition(EXPERTS)
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(which, ())
    if not found or any(f"{place}{EXPERTS}0.{part}.weight" not in stored for part in parts) or not parts:
        raise MalformedError(f"{source.path}: the reference needs {name}, which is not there")
    stacked = torch.empty(like.shape, dtype=like.dtype)
    for e, expert in enumerate(stacked):
        for into, part in zip(expert.chunk(len(parts)), parts, strict=True):
            into.copy_(get(f"{place}{EXPERTS}{e}.{part}.weight"))
    return stacked
