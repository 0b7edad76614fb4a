"""The runs that are compared: the reference, the zoo in one forward pass, and the zoo through a cache.

In memory, or streaming: both models together, with one layer's weights at a time. Peak memory of streaming is the
embedding or two layers, whichever is more, beside the activations, which include the prompts' logits. Every file is
read once for each model, twice in bfloat16.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from weights.loading import fill, match_model, open_source
from weights.matching import Source
from weights.reference.choices import gathered, recorded_choices, removed_after
from weights.reference.layers import LayerActivations, Part, PartwiseComparison
from weights.reference.model import (
    ORIGIN,
    MetaModel,
    decoder_layers,
    decoder_of,
    empty,
    load_reference,
    observed_layers,
)
from zoo.core.cache import Cache
from zoo.core.forward_context import ForwardContext
from zoo.model.decoder import Decoder
from zoo.model.module import Model
from zoo.model.parallel import Ranks

DECODED_TOKENS = 4  # at the end of a prompt, one by one through the cache
log = logging.getLogger(__name__)


@dataclass
class Runs:
    """The results of one comparison's runs: logits (batch, t, vocab), and what routers and indexers chose, layer
    by layer (batch, t, k)."""

    reference: Tensor
    full: Tensor
    cached: Tensor
    reference_float32: Tensor | None  # None where the others are in float32
    choices: dict[str, list[Tensor]]  # by "reference", "full", "cached"
    parts: tuple[Part, ...]
    origin: str


def chunk_sizes(length: int) -> list[int]:
    """How a prompt goes through the cache: one half, most of the other, and single tokens."""
    decoded = min(DECODED_TOKENS, length - 1)
    half = (length - decoded + 1) // 2
    return [size for size in (half, length - decoded - half, *[1] * decoded) if size]


def run_in_memory(
    spec: Decoder, source: Source, reference: Source, dtype: torch.dtype, tokens: Tensor, ranks: Ranks = Ranks()
) -> Runs:
    """Both models in memory, and the reference in float32 before, where `dtype` is another. `ranks` divide the zoo's,
    and each runs the reference by itself."""
    with _logged_seconds("the zoo's model"):
        model = fill(spec, source, "cpu", dtype, ranks=ranks)
    in_float32 = None
    if dtype != torch.float32:
        with _logged_seconds("the reference in float32"):
            in_float32 = load_reference(reference, torch.float32)[0](tokens, use_cache=False).logits
    comparison = PartwiseComparison(model, tokens, dtype)

    def visit(layer: LayerActivations) -> None:
        if layer.layer == 0:
            comparison.embedding(layer.x)
        comparison.layer(layer)

    with _logged_seconds("the reference, and each part by itself"):
        loaded, origin = load_reference(reference, dtype)
        with observed_layers(loaded, spec, source.rules, visit):
            logits = loaded(tokens, use_cache=False).logits
        comparison.head(logits)
    choices = {"reference": comparison.choices}
    full, choices["full"] = _forward(model, [tokens])
    chunks = tokens.split(chunk_sizes(tokens.shape[1]), dim=1)
    cached, choices["cached"] = _forward(model, chunks, model.new_cache(*tokens.shape))
    return Runs(logits, full, cached, in_float32, choices, tuple(comparison.parts), origin)


def _forward(model: Model, chunks: Sequence[Tensor], cache: Cache | None = None) -> tuple[Tensor, list[Tensor]]:
    """The zoo's logits and choices, chunk by chunk."""
    with recorded_choices(model) as choices:
        logits = torch.cat([model(chunk, cache) for chunk in chunks], dim=1)
    return logits, gathered(choices)


@contextmanager
def _logged_seconds(what: str) -> Iterator[None]:
    """Log how long `what` takes."""
    began = time.perf_counter()
    yield
    log.info("%s: %.1f s", what, time.perf_counter() - began)


class LayerwiseRuns:
    """The zoo's runs, a layer at a time: in one forward pass, and in chunks through a cache."""

    def __init__(self, spec: Decoder, source: Source, dtype: torch.dtype, tokens: Tensor, ranks: Ranks) -> None:
        self.matched, self.tokens = match_model(spec, source, dtype, ranks), tokens
        self.model = self.matched.model
        self.comparison = PartwiseComparison(self.model, tokens, dtype)
        batch, length = tokens.shape
        self.sizes = chunk_sizes(length)
        caches = [layer.cache_spec() for layer in self.model.spec.layers]
        self.cache = Cache(caches, batch, length, dtype, tokens.device)
        self.contexts = []
        for chunk in tokens.split(self.sizes, dim=1):
            self.contexts.append(self.model.prepare(chunk, self.cache)[0])
            self.cache.length += chunk.shape[1]
        self.full, self.cached = torch.empty(0), torch.empty(0)  # (batch, t, dim)
        self.inputs: list[Sequence[Tensor | None]] = []  # of the layers, in one forward pass and in each chunk
        self.ctx = replace(self.comparison.ctx, shared={})  # what layers hand on follows from other inputs there
        self.choices: dict[str, list[Tensor]] = {"reference": self.comparison.choices, "full": [], "cached": []}

    @contextmanager
    def filled(self, *names: str) -> Iterator[None]:
        """Meanwhile, these submodules ("embed", "layers.3") hold weights."""
        matched = replace(self.matched, source=open_source(self.matched.source.path))  # nothing else holds its pages
        prefixes = tuple(f"{name}." for name in names)
        mappings = [mapping for mapping in matched.mappings if mapping.module_names[0].startswith(prefixes)]
        self.model.load_state_dict(matched.read(mappings), strict=False, assign=True)
        del matched
        try:
            yield
        finally:
            for name in names:
                empty(self.model.get_submodule(name))

    def visit(self, reference: LayerActivations) -> None:
        """Run the zoo's layer, after the reference's."""
        index = reference.layer
        if index == 0:
            others = (name for name in ("positions", "per_layer") if getattr(self.model.spec, name))
            with self.filled("embed", *others):
                self.comparison.embedding(reference.x)
                embedded = self.model.embedded(self.tokens, self.comparison.ctx.positions)
                chunks = (each.split(self.sizes, dim=1) for each in (self.tokens, embedded))
                pairs = [(self.tokens, embedded), *zip(*chunks, strict=True)]
                self.inputs = [self.model.layer_inputs(*pair) for pair in pairs]
                self.full = self.cached = self.model.expanded(embedded)
        layer: Any = self.model.layers[index]
        with self.filled(f"layers.{index}"):
            self.comparison.layer(reference)
            no_cache, ctx = self.comparison.layer_caches[index], self.ctx
            ids = [self.tokens, *self.tokens.split(self.sizes, dim=1)]
            given = zip([ctx, *self.contexts], self.inputs, ids, strict=True)
            whole, *contexts = (replace(each, layer_input=one[index], tokens=tokens) for each, one, tokens in given)
            self.full = self._run("full", layer, no_cache, [self.full], [whole])
            chunks = self.cached.split(self.sizes, dim=1)
            self.cached = self._run("cached", layer, self.cache.layers[index], chunks, contexts)

    def _run(self, name: str, layer: Any, cache: Any, chunks: Sequence[Tensor], contexts: Sequence[Any]) -> Tensor:
        """The layer's output, (batch, t, dim), for these chunks of its input."""
        with recorded_choices(layer) as choices:
            out = [_run_and_keep(layer, chunk, ctx, cache) for chunk, ctx in zip(chunks, contexts, strict=True)]
        self.choices[name] += gathered(choices)
        return torch.cat(out, dim=1)


def _run_and_keep(layer: Any, x: Tensor, ctx: ForwardContext, cache: Any) -> Tensor:
    """The layer's output. What it hands on is copied: its cache goes on before later layers read it."""
    before = dict(ctx.shared)
    out: Tensor = layer(x, ctx, cache)
    for name, value in ctx.shared.items():
        if value is not before.get(name) and isinstance(value, tuple):
            ctx.shared[name] = tuple(each.clone() if isinstance(each, Tensor) else each for each in value)
    return out


def run_streaming(
    spec: Decoder, source: Source, reference: Source, dtype: torch.dtype, tokens: Tensor, ranks: Ranks = Ranks()
) -> Runs:
    """Both models, a layer at a time; the reference in float32 before, where `dtype` is another."""
    zoo = LayerwiseRuns(spec, source, dtype, tokens, ranks)
    in_float32 = None if dtype == torch.float32 else _streamed_logits(MetaModel(reference, torch.float32), tokens)
    meta = MetaModel(reference, dtype)
    with tqdm(total=len(spec.layers), unit="layer", disable=None, leave=False) as bar:

        def visit(layer: LayerActivations) -> None:
            zoo.visit(layer)
            bar.update()

        logits = _streamed_logits(meta, tokens, observed_layers(meta.model, spec, source.rules, visit))
    streams = ("contraction",) if spec.streams else ()
    with zoo.filled("norm", *streams, "embed" if spec.tied else "head"):
        zoo.comparison.head(logits)
        full = zoo.model.logits(zoo.full)
        cached = torch.cat([zoo.model.logits(chunk) for chunk in zoo.cached.split(zoo.sizes, dim=1)], dim=1)
    return Runs(logits, full, cached, in_float32, zoo.choices, tuple(zoo.comparison.parts), ORIGIN)


def _streamed_logits(meta: MetaModel, tokens: Tensor, observed: AbstractContextManager[None] = nullcontext()) -> Tensor:
    """The reference's logits. Its layers, embedding, last norm and head hold weights only while they run; `observed` is
    entered around the forward pass, and its hooks see a layer that is empty again."""
    names = {module: name for name, module in meta.model.named_modules()}
    head = meta.model.get_output_embeddings()
    layers = decoder_layers(meta.model)
    parts = (*(part for part in decoder_of(meta.model).children() if part is not layers), *layers, head)
    embedding = meta.model.get_input_embeddings()

    def reload(module: nn.Module, _: tuple[Any, ...]) -> tuple[Tensor] | None:
        meta.reload_submodule(names[module])
        return (tokens,) if module is embedding else None  # Llama 4 has sent them to the meta device, to its weights

    before = (part.register_forward_pre_hook(reload) for part in parts)
    after = (part.register_forward_hook(lambda module, _, out: empty(module)) for part in parts)
    with removed_after(chain(before, after)), observed:
        return meta.model(tokens, use_cache=False).logits
