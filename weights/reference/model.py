"""The reference: transformers' implementation of a model, with eager attention and a source's weights.

Either transformers reads the weights, or the zoo does: it fills and empties the submodules of a model on the meta
device one by one. The zoo reads models that are too large for memory, packed weights (transformers' fp8 differs in
partial blocks), and multimodal wrappers, of which transformers would read more than the text part.

Modules of transformers 5 have other names than the tensors in the files, and hold the experts of a layer in one tensor.
transformers' own table of conversions gives the names. The zoo's rules are not used for this, so that an error in them
does not reach the reference too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass, field
from io import StringIO
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from weights.formats.hf_folder import CONFIG
from weights.formats.untrusted import CONFIG_LIMIT, member, read_json
from weights.loading import open_source
from weights.matching import HEAD, Source, rule_names
from weights.reference.differences import LayerActivations
from weights.reference.float64 import as_stored
from zoo.catalog import family_of
from zoo.errors import CheckFailed, MalformedError, require_package
from zoo.hf.checkpoint_layout import Rule, Rules
from zoo.model.decoder import Decoder

ReadTensor = Callable[[str], Tensor]
ORIGIN = "text part, weights read by the zoo"
PLAIN_KERNELS = {"attn_implementation": "eager", "experts_implementation": "eager"}  # these support every dtype
FEED_FORWARD = "ffn.block."  # the prefix of a feed-forward's parameters in a layer of the zoo


def transformers() -> Any:
    """Returns the package. Raises NotAvailable, with the pip command, if it is not installed."""
    return require_package("transformers", "parity")


def causal_class(config: Any) -> Any:
    """Returns the class of the model that a config describes: the class in the table of AutoModelForCausalLM or, for a
    config that the table lacks (Mistral Small 4), the class that the zoo's architecture names."""
    table = transformers().AutoModelForCausalLM._model_mapping
    if type(config) in table:
        return table[type(config)]
    return getattr(transformers(), family_of({"model_type": config.model_type}).from_hf.classes[config.model_type])


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' messages and progress bars, some of which no setting turns off. Errors are still
    raised."""
    settings = transformers().utils.logging
    level, bars = settings.get_verbosity(), settings.is_progress_bar_enabled()
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        settings.set_verbosity(level)
        if bars:
            settings.enable_progress_bar()


def config_of(source: Source) -> Any:
    """Returns the source's config as transformers reads it. The float32 numbers of a .gguf file become decimal numbers
    again. A model_type unknown to transformers is replaced by another one of the same family: kimi_k2 by
    deepseek_v3."""
    known = transformers().CONFIG_MAPPING
    reader = transformers().AutoConfig
    if source.path.is_dir():
        config = read_json(member(source.path, CONFIG), CONFIG_LIMIT)
        if config["model_type"] not in known:
            reader = next((known[name] for name in family_of(config).from_hf.model_types if name in known), reader)
    with quiet():
        gguf = {} if source.path.is_dir() else {"gguf_file": source.path.name}
        found = reader.from_pretrained(str(source.folder), **gguf)
    found.model_type = type(found).model_type  # otherwise the file's is kept, and it decides how tensors are named
    if not source.path.is_dir():
        vars(found).update(_decimal(vars(found)))
    return found


def _decimal(value: Any) -> Any:
    """Returns the shortest decimal number for each float32 in a config: 1e-06 for 9.999999974752427e-07. The difference
    changes Gemma 3 270M's logits by 2e-10 of the largest logit."""
    if isinstance(value, dict):
        return {name: _decimal(each) for name, each in value.items()}
    if isinstance(value, float) and np.float32(value) == value:
        return float(str(np.float32(value)))
    return value


def load_reference(source: Source, dtype: torch.dtype) -> tuple[Any, str]:
    """Loads the reference of a source: a causal language model of transformers. Returns it with a note on how its
    weights were read."""
    config = config_of(source)
    options: dict[str, Any] = {"config": config}
    if source.path.is_dir():
        multimodal = config.get_text_config() is not config
        if multimodal or getattr(config, "quantization_config", None) is not None:
            meta = MetaModel(source, dtype)
            meta.reload_submodule("", source)
            return meta.model, ORIGIN
    else:
        require_package("accelerate", "parity")  # transformers needs it for .gguf files
        options["gguf_file"] = source.path.name
    options |= {"dtype": dtype, "output_loading_info": True, **PLAIN_KERNELS}
    with quiet():
        model, info = causal_class(config).from_pretrained(str(source.folder), **options)
    if info["missing_keys"]:
        raise MalformedError(f"{source.path}: transformers finds no {', '.join(sorted(info['missing_keys']))} there")
    return model.eval(), "weights read by transformers"


@contextmanager
def removed_after(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Registers hooks, and removes them when the context manager exits."""
    with ExitStack() as registered:
        for hook in hooks:
            registered.enter_context(hook)
        yield


@contextmanager
def observed_layers(
    model: Any, spec: Decoder, rules: Rules, visit: Callable[[LayerActivations], None]
) -> Iterator[None]:
    """Passes the activations of each layer of the reference to `visit`, right after the layer has run."""
    layers = enumerate(decoder_layers(model))
    gates = dict(rule_names(rule) for rule in rules if isinstance(rule, Rule))
    gate = gates.get(("inputs.block.gate",)) if spec.per_layer else None
    hooks = (_observe(i, layer, feed_forward_input(spec, rules, i, layer), gate, visit) for i, layer in layers)
    with removed_after(chain.from_iterable(hooks)):
        yield


def decoder_of(model: Any) -> nn.Module:
    """Returns the part of the reference's causal language model with the layers, the embedding and the last norm. This
    is not get_decoder(), which returns the whole model for Llama 4."""
    return next(part for part in model.modules() if _layer_lists(part))


def decoder_layers(model: Any) -> nn.ModuleList:
    """Returns the layers of the reference's causal language model, whatever their name."""
    return _layer_lists(decoder_of(model))[0]


def _layer_lists(module: nn.Module) -> list[nn.ModuleList]:
    return [child for child in module.children() if isinstance(child, nn.ModuleList)]


def _observe(
    index: int, layer: nn.Module, middle: str | None, gate: str | None, visit: Callable[[LayerActivations], None]
) -> list[RemovableHandle]:
    seen: dict[str, Any] = {}

    def before(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: seen.update({name: args[0]})

    def done(_: nn.Module, args: tuple[Tensor, ...], out: Any) -> None:
        last = out[0] if isinstance(out, tuple) else out
        gated: Any = seen.get("gated", last)
        visit(LayerActivations(index, seen["x"], seen.get("between", gated), gated, last))
        seen.clear()

    return [
        layer.register_forward_pre_hook(before("x")),
        *([] if middle is None else [layer.get_submodule(middle).register_forward_pre_hook(before("between"))]),
        *([] if gate is None else [layer.get_submodule(gate).register_forward_pre_hook(before("gated"))]),
        layer.register_forward_hook(done),
    ]


def feed_forward_input(spec: Decoder, rules: Rules, index: int, layer: nn.Module) -> str | None:
    """Returns the name of the submodule of the reference's `layer` that reads the input of the feed-forward branch.

    This is the norm before the feed-forward or, if there is no such norm, the feed-forward itself. The rules of the
    checkpoint layout give the names. Returns None if the layer has no feed-forward. Raises CheckFailed if no submodule
    has a name from the rules.
    """
    branch = spec.layers[index].ffn
    if branch is None:
        return None
    has_norm, norm = branch.reads_x_by is not None, f"ffn.{branch.reads_x_by}"
    modules = dict(layer.named_modules())
    for module_names, checkpoint_name in (rule_names(rule) for rule in rules if isinstance(rule, Rule)):
        name = checkpoint_name if has_norm else checkpoint_name.partition(".")[0]
        found = module_names == (norm,) if has_norm else module_names[0].startswith(FEED_FORWARD)
        if found and name in modules:
            return name
    what = "norm before its feed-forward" if has_norm else "feed-forward"
    raise CheckFailed(f"layer {index} of the reference, {type(layer).__name__}: no rule has the name of its {what}")


@dataclass
class Conversion:
    """The conversion of stored tensors into tensors of the reference. `first` names the first result. `converter` is
    transformers' converter, or None if a tensor is only renamed. `stored` holds the stored names by the pattern that
    they matched."""

    first: str
    converter: Any = None
    stored: dict[str, list[str]] = field(default_factory=dict)

    def make(self, name: str, like: Tensor, read: ReadTensor, config: Any) -> Tensor:
        """Returns the tensor `name`, with the shape and dtype of `like`. If the result is the same, experts are
        converted one by one, so that they are not in memory twice."""
        if self.converter is None:
            ((only,),) = self.stored.values()
            return read(only)
        counts, operation = {len(names) for names in self.stored.values()}, self.converter.operations[0]
        stacks_experts = type(operation).__name__ == "MergeModulelist" and operation.dim == 0
        if stacks_experts and len(like) > 1 and counts == {len(like)}:
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


def conversions(model: Any, stored: Iterable[str]) -> Mapping[str, Conversion]:
    """Returns {name: conversion} for each parameter or buffer of the reference that is read from stored tensors."""
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
            self.model = causal_class(config)._from_config(config, dtype=dtype, **PLAIN_KERNELS)
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
        """Fills the submodule of this name ("": the whole model). Without a `source`, the files are opened anew, so
        that nothing holds their pages once the submodule is emptied."""
        opened = open_source(self.path) if source is None else source
        module, prefix = self.model.get_submodule(name), name and f"{name}."
        with as_stored():
            filled = {leaf: self._tensor(prefix + leaf, like, opened) for leaf, like in module.state_dict().items()}
        module.load_state_dict(filled, assign=True)

    def _tensor(self, name: str, like: Tensor, source: Source) -> Tensor:
        """Returns the tensor that transformers calls `name`. Tied heads and stacked experts have other names in
        files."""

        def read(stored: str) -> Tensor:
            return source.get(stored, dtype=like.dtype)

        if name in self.conversions:
            return self.conversions[name].make(name, like, read, self.model.config)
        if f"{name}_blocks" in source.tensors:  # MXFP4 stores the last two axes in the opposite order
            return read(f"{name}_blocks").mT.contiguous()
        if name == HEAD and source.embedding in source.tensors:
            return read(source.embedding)
        raise MalformedError(f"{source.path}: the reference needs {name}, which the source does not have")


def empty(module: nn.Module) -> None:
    """Frees the memory of a module: its tensors become meta tensors."""
    module.load_state_dict({name: tensor.to("meta") for name, tensor in module.state_dict().items()}, assign=True)
