"""The reference: the implementation that transformers has of a model, in eager attention, with a source's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from weights.formats.hf_folder import CONFIG
from weights.formats.json_limits import CONFIG_LIMIT, member, read_json
from weights.loading import Source
from weights.reference.layers import Passed
from zoo.catalog import family_of
from zoo.errors import CheckFailed, MalformedError, require_package
from zoo.hf.checkpoint_layout import Rule, Rules
from zoo.model.decoder import Decoder

EXTRA = "parity"
FEED_FORWARD = "ffn.block."  # how the zoo names the parameters of a layer's feed-forward


@dataclass
class Reference:
    """A causal language model of transformers, and how its weights came into it."""

    model: Any
    origin: str

    @property
    def layers(self) -> nn.ModuleList:
        """Its layers, in order."""
        return self.model.get_decoder().layers

    def logits(self, tokens: Tensor) -> Tensor:
        """Token ids (batch, t) -> logits (batch, t, vocab), without a cache."""
        return self.model(tokens, use_cache=False).logits


def transformers() -> Any:
    """The package. Raises NotAvailable with the line to type."""
    return require_package("transformers", EXTRA)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the package's notes and bars, some of which no setting of it turns off; errors say the rest."""
    said = transformers().utils.logging
    level, bars = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity_error()
    said.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        said.set_verbosity(level)
        if bars:
            said.enable_progress_bar()


def config_of(source: Source) -> Any:
    """The source's config as transformers reads it; by another name of the architecture where it lacks this one."""
    folder, named = place(source)
    known = transformers().CONFIG_MAPPING
    reader = transformers().AutoConfig
    if source.path.is_dir():
        said = read_json(member(source.path, CONFIG), CONFIG_LIMIT)
        names = family_of(said).from_hf.model_types
        if said["model_type"] not in known:  # kimi_k2, which is deepseek_v3
            reader = next((known[name] for name in names if name in known), reader)
    with quiet():
        config = reader.from_pretrained(folder, **named)
    config.model_type = type(config).model_type  # the file's is kept otherwise, and says how tensors are named
    return config


def whole(source: Source) -> bool:
    """Whether transformers reads the weights exactly and nothing but the text part: neither packed nor multimodal."""
    if not source.path.is_dir():
        return True
    config = config_of(source)
    return config.get_text_config() is config and getattr(config, "quantization_config", None) is None


def load_reference(source: Source, dtype: torch.dtype) -> Reference:
    """The reference of a source in memory, its weights read by transformers."""
    folder, named = place(source)
    if named:
        require_package("accelerate", EXTRA)  # transformers reads no .gguf file without it
    given: dict[str, Any] = named or {"config": config_of(source)}
    with quiet():
        model, told = transformers().AutoModelForCausalLM.from_pretrained(
            folder, **given, dtype=dtype, attn_implementation="eager", output_loading_info=True
        )
    if told["missing_keys"]:
        raise MalformedError(f"{source.path}: transformers finds no {', '.join(sorted(told['missing_keys']))} there")
    return Reference(model.eval(), "weights read by transformers")


def place(source: Source) -> tuple[str, dict[str, str]]:
    """The folder of a source, and how transformers is told of a file in it."""
    if source.path.is_dir():
        return str(source.path), {}
    return str(source.path.parent), {"gguf_file": source.path.name}


@contextmanager
def watched(reference: Reference, spec: Decoder, rules: Rules, visit: Callable[[Passed], None]) -> Iterator[None]:
    """Meanwhile, `visit` sees what goes through each layer of the reference, right after the layer."""
    hooks: list[Any] = []
    for index, layer in enumerate(reference.layers):
        hooks += _watch(index, layer, entrance(spec, rules, index, layer), visit)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _watch(index: int, layer: nn.Module, middle: str, visit: Callable[[Passed], None]) -> list[Any]:
    seen: dict[str, Tensor] = {}

    def into(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["x"] = args[0]

    def between(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["between"] = args[0]

    def routed(_: nn.Module, args: tuple[Tensor, ...], out: tuple[Tensor, ...]) -> None:
        seen["experts"] = out[-1].sort(-1).values

    def done(_: nn.Module, args: tuple[Tensor, ...], out: Any) -> None:
        last = out[0] if isinstance(out, tuple) else out
        visit(Passed(index, seen["x"], seen["between"], last, seen.get("experts")))
        seen.clear()

    routers = [part for part in layer.modules() if type(part).__name__.endswith("Router")]
    return [
        layer.register_forward_pre_hook(into),
        layer.get_submodule(middle).register_forward_pre_hook(between),
        *(router.register_forward_hook(routed) for router in routers),
        layer.register_forward_hook(done),
    ]


def entrance(spec: Decoder, rules: Rules, index: int, layer: nn.Module) -> str:
    """The module of the reference's `layer` that is first given what attention has left: the feed-forward's norm or,
    where no norm stands before it, the feed-forward itself. Its name is one that the rules of the layout have for it.

    Raises CheckFailed where the layer has no module of such a name.
    """
    before = getattr(spec.layers[index].ffn, "pre", None) is not None
    modules = dict(layer.named_modules())
    for rule in rules:
        if isinstance(rule, Rule):
            ours = (rule.module_names,) if isinstance(rule.module_names, str) else rule.module_names
            held = ours == ("ffn.pre",) if before else ours[0].startswith(FEED_FORWARD)
            name = rule.checkpoint_names if before else rule.checkpoint_names.partition(".")[0]
            if held and name in modules:
                return name
    what = "norm before its feed-forward" if before else "feed-forward"
    raise CheckFailed(f"layer {index} of the reference, {type(layer).__name__}: no rule knows the name of the {what}")
