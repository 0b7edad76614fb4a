"""A reference on the meta device, whose submodules are filled and emptied one by one with tensors that the zoo reads.

For models too large for memory, and for checkpoints that transformers does not read exactly, or reads more of than the
text part: packed weights (its fp8 differs in partial blocks) and multimodal wrappers.

Modules of transformers 5 have other names than the files they are read from, and hold the experts of a layer in one
tensor. Its own table of conversions gives the names. The zoo's rules are not read here, so that an error in them does
not appear in the reference as well.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from weights.loading import open_source
from weights.matching import EMBED, HEAD, Source
from weights.reference.model import Reference, config_of, quiet, transformers
from zoo.errors import MalformedError, require_package

ReadTensor = Callable[[str], Tensor]
ORIGIN = "text part, weights read by the zoo"


@dataclass
class Conversion:
    """How tensors of the reference are made: the stored names by the pattern that each matched, and transformers'
    converter, None where a tensor is only renamed. `first` is the converter's name for its first result."""

    first: str
    converter: Any = None
    stored: dict[str, list[str]] = field(default_factory=dict)

    def make(self, name: str, like: Tensor, read: ReadTensor, config: Any) -> Tensor:
        """The tensor `name`, of the shape and dtype of `like`. Experts are converted one by one where that gives the
        same, so that they are not in memory twice."""
        if self.converter is None:
            ((only,),) = self.stored.values()
            return read(only)
        counts = {len(names) for names in self.stored.values()}
        if len(like) > 1 and counts == {len(like)} and _stacks_experts(self.converter):
            one = self._convert(name, read, config, slice(1))
            if one.shape == (1, *like.shape[1:]):
                whole = torch.empty(like.shape, dtype=like.dtype)
                whole[:1] = one
                for e in range(1, len(like)):
                    whole[e : e + 1] = self._convert(name, read, config, slice(e, e + 1))
                return whole
        return self._convert(name, read, config, slice(None))

    def _convert(self, name: str, read: ReadTensor, config: Any, experts: slice) -> Tensor:
        converter = deepcopy(self.converter)
        for pattern, names in self.stored.items():
            for each in names[experts]:
                converter.add_tensor(self.first, each, pattern, read(each))
        value = converter.convert(self.first, config=config)[name]
        return value[0] if isinstance(value, list) else value


def _stacks_experts(converter: Any) -> bool:
    """Whether a converter starts by stacking the tensors of the experts along the first axis."""
    first = converter.operations[0]
    return type(first).__name__ == "MergeModulelist" and first.dim == 0


def conversions(model: Any, stored: Iterable[str]) -> Mapping[str, Conversion]:
    """Name of a parameter or buffer of the reference -> its conversion, for all that stored tensors are read into."""
    loading = require_package("transformers.core_model_loading", "parity")
    table = require_package("transformers.conversion_mapping", "parity").get_model_conversion_mapping(model)
    converters = [each for each in table if isinstance(each, loading.WeightConverter)]
    renamings = [each for each in table if isinstance(each, loading.WeightRenaming)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    wanted, found = model.state_dict(), dict[str, Conversion]()
    for name in sorted(stored, key=loading.dot_natural_key):  # experts in the order of their numbers
        first, pattern = loading.rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
        converter = by_pattern.get(pattern)
        conversion = found.setdefault(first, Conversion(first, converter))
        conversion.stored.setdefault(pattern or name, []).append(name)
        if converter is not None:
            for other in converter.target_patterns[1:]:
                found[first.replace(converter.target_patterns[0], other)] = conversion
    return found


class MetaModel:
    """The reference's modules on the meta device. Buffers that no checkpoint holds are computed."""

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        config = config_of(source).get_text_config()
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # the tensors are unpacked before they are filled in
        with quiet(), torch.device("meta"):
            self.model = transformers().AutoModelForCausalLM.from_config(
                config, attn_implementation="eager", dtype=dtype
            )
        computed = {}
        for name, buffer in self.model.named_non_persistent_buffers():
            parent, _, leaf = name.rpartition(".")
            computed[parent] = self.model.get_submodule(parent)
            computed[parent]._buffers[leaf] = torch.empty(buffer.shape, dtype=buffer.dtype)
        for module in computed.values():
            self.model._init_weights(module)
        self.model.eval()
        self.path = source.path
        self.conversions = conversions(self.model, source.tensors)

    def reload_submodule(self, name: str, source: Source | None = None) -> None:
        """Fill the submodule of this name ("": the whole model). Without a `source` its files are opened anew, so that
        nothing holds their pages once the submodule is emptied."""
        opened = open_source(self.path) if source is None else source
        module, prefix = self.model.get_submodule(name), name and f"{name}."
        filled = {leaf: self._tensor(prefix + leaf, like, opened) for leaf, like in module.state_dict().items()}
        module.load_state_dict(filled, assign=True)

    def _tensor(self, name: str, like: Tensor, source: Source) -> Tensor:
        """The tensor that transformers calls `name`: a tied head and stacked experts have other names in files."""

        def read(stored: str) -> Tensor:
            return source.get(stored, dtype=like.dtype)

        if name in self.conversions:
            return self.conversions[name].make(name, like, read, self.model.config)
        if f"{name}_blocks" in source.tensors:  # MXFP4 has the last two axes the other way round
            return read(f"{name}_blocks").mT.contiguous()
        if name == HEAD and EMBED in source.tensors:
            return read(EMBED)
        raise MalformedError(f"{source.path}: the reference needs {name}, which is not there")


def filled_reference(source: Source, dtype: torch.dtype) -> Reference:
    """The reference in memory, with tensors that the zoo reads."""
    meta = MetaModel(source, dtype)
    meta.reload_submodule("", source)
    return Reference(meta.model, ORIGIN)


def empty(module: nn.Module) -> None:
    """Free the memory of a module: its tensors become meta tensors."""
    bare = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(bare, assign=True)
