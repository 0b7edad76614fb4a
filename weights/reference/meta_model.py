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
from weights.reference.checkpoint_names import Recipe, recipes
from weights.reference.model import Reference, config_of, quiet, transformers
from zoo.errors import MalformedError


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
    _fill(model, "", model, source, stored, recipes(model, stored))
    return Reference(model, "text part, weights read by the zoo")


class Refill:
    """Fills parts of a reference's modules again and again. What each tensor is made of is settled once."""

    def __init__(self, model: Any, source: Source) -> None:
        self.model, self.path = model, source.path
        self.recipes = recipes(model, text_names(source.path, source.entries()))

    def __call__(self, module: nn.Module, name: str) -> None:
        """Fill a part of the model, called `name` in it, from the source opened once more: once emptied, nothing holds
        the pages of its files."""
        opened = open_source(self.path)
        _fill(module, name, self.model, opened, text_names(opened.path, opened.entries()), self.recipes)


def _fill(
    module: nn.Module,
    prefix: str,
    model: Any,
    source: Source,
    stored: Mapping[str, Entry],
    made: Mapping[str, Recipe],
) -> None:
    """Fill a part of the reference, called `prefix` in the whole."""
    filled = {}
    for name, like in module.state_dict().items():
        full = f"{prefix}.{name}" if prefix else name
        filled[name] = _tensor(full, like, model.config, source, stored, made)
    module.load_state_dict(filled, assign=True)


def empty(module: nn.Module) -> None:
    """Give back the memory of a part."""
    bare = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(bare, assign=True)


def _tensor(
    name: str, like: Tensor, config: Any, source: Source, stored: Mapping[str, Entry], made: Mapping[str, Recipe]
) -> Tensor:
    """The tensor that transformers calls `name`: a tied head and stacked experts have other names in files."""

    def get(name: str) -> Tensor:
        return source.get(stored[name].name, dtype=like.dtype)

    if name in made:
        return made[name].make(name, like, get, config)
    if f"{name}_blocks" in stored:  # MXFP4 has the last two axes the other way round
        return get(f"{name}_blocks").mT.contiguous()
    if name == HEAD and EMBED in stored:
        return get(EMBED)
    raise MalformedError(f"{source.path}: the reference needs {name}, which is not there")
