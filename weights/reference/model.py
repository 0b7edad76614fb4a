"""The reference: transformers' implementation of a model, in eager attention, with a source's weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from weights.formats.hf_folder import CONFIG
from weights.formats.json_limits import CONFIG_LIMIT, member, read_json
from weights.matching import Source, rule_names
from weights.reference.layers import LayerActivations, removed_after
from zoo.catalog import family_of
from zoo.errors import CheckFailed, MalformedError, require_package
from zoo.hf.checkpoint_layout import Rule, Rules
from zoo.model.decoder import Decoder

FEED_FORWARD = "ffn.block."  # the prefix of a feed-forward's parameters in a layer of the zoo


@dataclass
class Reference:
    """A causal language model of transformers, and how its weights were read."""

    model: Any
    origin: str

    def logits(self, tokens: Tensor) -> Tensor:
        """Token ids (batch, t) -> logits (batch, t, vocab), without a cache."""
        return self.model(tokens, use_cache=False).logits


def transformers() -> Any:
    """The package. Raises NotAvailable with the pip line where it is missing."""
    return require_package("transformers", "parity")


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' messages and progress bars, some of which no setting turns off. Errors are still raised."""
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
    """The source's config as transformers reads it. A model_type that transformers lacks is replaced by another of the
    same family: kimi_k2 is deepseek_v3."""
    known = transformers().CONFIG_MAPPING
    reader = transformers().AutoConfig
    if source.path.is_dir():
        config = read_json(member(source.path, CONFIG), CONFIG_LIMIT)
        if config["model_type"] not in known:
            reader = next((known[name] for name in family_of(config).from_hf.model_types if name in known), reader)
    with quiet():
        found = reader.from_pretrained(str(source.folder), **_gguf_file(source))
    found.model_type = type(found).model_type  # the file's would be kept, and decides how tensors are named
    return found


def _gguf_file(source: Source) -> dict[str, str]:
    """The argument that makes transformers read a .gguf file in the source's folder."""
    return {} if source.path.is_dir() else {"gguf_file": source.path.name}


def transformers_reads(source: Source) -> bool:
    """Whether transformers itself reads the weights exactly, and only the text part: neither packed nor multimodal."""
    if not source.path.is_dir():
        return True
    config = config_of(source)
    return config.get_text_config() is config and getattr(config, "quantization_config", None) is None


def load_reference(source: Source, dtype: torch.dtype) -> Reference:
    """The reference of a source in memory, its weights read by transformers."""
    options: dict[str, Any] = _gguf_file(source)
    if options:
        require_package("accelerate", "parity")  # transformers needs it for .gguf files
    else:
        options = {"config": config_of(source)}
    options |= {"dtype": dtype, "attn_implementation": "eager", "output_loading_info": True}
    with quiet():
        model, info = transformers().AutoModelForCausalLM.from_pretrained(str(source.folder), **options)
    if info["missing_keys"]:
        raise MalformedError(f"{source.path}: transformers finds no {', '.join(sorted(info['missing_keys']))} there")
    return Reference(model.eval(), "weights read by transformers")


@contextmanager
def observed_layers(
    model: Any, spec: Decoder, rules: Rules, visit: Callable[[LayerActivations], None]
) -> Iterator[None]:
    """Meanwhile, `visit` gets the activations of each layer of the reference, right after the layer has run."""
    layers = enumerate(model.get_decoder().layers)
    hooks = (_observe(i, layer, feed_forward_input(spec, rules, i, layer), visit) for i, layer in layers)
    with removed_after(chain.from_iterable(hooks)):
        yield


def _observe(
    index: int, layer: nn.Module, middle: str, visit: Callable[[LayerActivations], None]
) -> list[RemovableHandle]:
    seen: dict[str, Tensor] = {}

    def before(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: seen.update({name: args[0]})

    def routed(_: nn.Module, args: tuple[Tensor, ...], out: tuple[Tensor, ...]) -> None:
        seen["experts"] = out[-1].sort(-1).values

    def done(_: nn.Module, args: tuple[Tensor, ...], out: Any) -> None:
        last = out[0] if isinstance(out, tuple) else out
        visit(LayerActivations(index, seen["x"], seen["between"], last, seen.get("experts")))
        seen.clear()

    routers = [part for part in layer.modules() if type(part).__name__.endswith("Router")]
    return [
        layer.register_forward_pre_hook(before("x")),
        layer.get_submodule(middle).register_forward_pre_hook(before("between")),
        *(router.register_forward_hook(routed) for router in routers),
        layer.register_forward_hook(done),
    ]


def feed_forward_input(spec: Decoder, rules: Rules, index: int, layer: nn.Module) -> str:
    """The name of the first module of the reference's `layer` after attention: the feed-forward's norm or, where there
    is no norm before it, the feed-forward. The rules of the checkpoint layout have the names.

    Raises CheckFailed where the layer has no module of such a name.
    """
    has_norm = getattr(spec.layers[index].ffn, "pre", None) is not None
    modules = dict(layer.named_modules())
    for module_names, checkpoint_name in (rule_names(rule) for rule in rules if isinstance(rule, Rule)):
        name = checkpoint_name if has_norm else checkpoint_name.partition(".")[0]
        found = module_names == ("ffn.pre",) if has_norm else module_names[0].startswith(FEED_FORWARD)
        if found and name in modules:
            return name
    what = "norm before its feed-forward" if has_norm else "feed-forward"
    raise CheckFailed(f"layer {index} of the reference, {type(layer).__name__}: no rule has the name of its {what}")
