"""The runs that are compared: the reference, the zoo in one forward pass, and the zoo through a cache.

All three run in float64 first. If a narrower dtype is requested, they run again in that dtype, with the experts and
keys that were chosen in float64. The reference's float64 logits count as exact: all other logits are measured against
them.

Either both models are in memory, or streaming runs them together, layer by layer, with one layer's weights at a time.
Peak memory with streaming is the activations, including the prompts' logits, plus the embedding or two layers,
whichever is more. Every file is read once for each model and dtype.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from weights.loading import fill, match_model, open_source
from weights.matching import Source
from weights.reference.differences import Difference, LayerActivations, Part, PartwiseComparison, compare
from weights.reference.float64 import Selections, as_stored, in_float64
from weights.reference.model import (
    ORIGIN,
    MetaModel,
    decoder_layers,
    decoder_of,
    empty,
    load_reference,
    observed_layers,
    removed_after,
)
from zoo.core.cache import Cache
from zoo.core.forward_context import ForwardContext
from zoo.model.decoder import Decoder
from zoo.model.module import fill_buffers
from zoo.model.parallel import Ranks

DECODED_TOKENS = 4  # tokens at the end of a prompt, run one by one through the cache
SIDES = ("reference", "zoo", "cached")  # the origin of the logits in each run
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """The two models to compare, on the same `tokens` (batch, t). The zoo's model has a `spec`, the weights of
    `source`, and the `ranks` that divide it. `reference` is the source of the reference's weights."""

    spec: Decoder
    source: Source
    reference: Source
    tokens: Tensor
    ranks: Ranks = Ranks()


@dataclass
class Results:
    """The results of the runs. `exact` (batch, t, vocab) are the reference's logits in float64. `differences` maps
    (dtype, side) to the difference from them, `parts` are in float64, and `origin` says how the reference's weights
    were read."""

    exact: Tensor = field(default_factory=lambda: torch.empty(0))
    differences: dict[tuple[torch.dtype, str], Difference] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    origin: str = ""
    selections: dict[str, Selections] = field(default_factory=lambda: {side: Selections() for side in SIDES})

    def add(self, dtype: torch.dtype, side: str, logits: Tensor) -> None:
        """Measures one side's logits. The first logits to be added are the exact logits."""
        if not self.exact.numel():
            self.exact = logits
        else:
            self.differences[dtype, side] = compare(self.exact, logits)


Run = Callable[[Models, torch.dtype, Results], None]


def run_all(models: Models, dtype: torch.dtype, streaming: bool) -> Results:
    """Returns the results of the runs in float64 and then, unless `dtype` is float64, in `dtype`."""
    results, run = Results(), run_streaming if streaming else run_in_memory
    with in_float64():
        run(models, torch.float64, results)
    if dtype != torch.float64:
        for selections in results.selections.values():
            selections.replay()
        run(models, dtype, results)
    return results


def chunk_sizes(length: int) -> list[int]:
    """Returns the sizes of a prompt's chunks for the runs through the cache: two halves of all but the last tokens, and
    then the last tokens one by one."""
    decoded = min(DECODED_TOKENS, length - 1)
    half = (length - decoded + 1) // 2
    return [size for size in (half, length - decoded - half, *[1] * decoded) if size]


def run_in_memory(models: Models, dtype: torch.dtype, results: Results) -> None:
    """Runs both models in memory. With several ranks, they divide the zoo's model, and each of them runs the whole
    reference."""
    tokens, selections = models.tokens, results.selections
    with as_stored(), _logged_seconds(f"the zoo's model in {dtype}"):
        model = fill(models.spec, models.source, "cpu", dtype, ranks=models.ranks)
    with _logged_seconds(f"the reference in {dtype}"):
        reference, results.origin = load_reference(models.reference, dtype)
        observed: AbstractContextManager[None] = nullcontext()
        if dtype == torch.float64:
            comparison = PartwiseComparison(model, tokens)

            def visit(layer: LayerActivations) -> None:
                with selections["reference"].paused():
                    if layer.layer == 0:
                        comparison.embedding(layer.x)
                    comparison.layer(layer)

            observed = observed_layers(reference, models.spec, models.source.rules, visit)
        with observed, selections["reference"]:
            logits = reference(tokens, use_cache=False).logits
        del reference
        if dtype == torch.float64:
            comparison.head(logits)
            results.parts = tuple(comparison.parts)
    results.add(dtype, "reference", logits)
    del logits
    with selections["zoo"]:
        logits = model(tokens)
    results.add(dtype, "zoo", logits)
    del logits
    cache = model.new_cache(*tokens.shape)
    with selections["cached"]:
        passes = [model(chunk, cache) for chunk in tokens.split(chunk_sizes(tokens.shape[1]), dim=1)]
    results.add(dtype, "cached", torch.cat(passes, dim=1))


@contextmanager
def _logged_seconds(what: str) -> Iterator[None]:
    """Logs how long `what` takes."""
    began = time.perf_counter()
    yield
    log.info("%s: %.1f s", what, time.perf_counter() - began)


class LayerwiseRuns:
    """Runs the zoo's model layer by layer, both in one forward pass and in chunks through a cache. In float64, it also
    runs each part on the reference's own input."""

    def __init__(self, models: Models, dtype: torch.dtype, selections: dict[str, Selections]) -> None:
        self.tokens, self.selections = models.tokens, selections
        with as_stored():
            self.matched = match_model(models.spec, models.source, dtype, models.ranks)
        self.model = self.matched.model
        self.comparison = PartwiseComparison(self.model, self.tokens) if dtype == torch.float64 else None
        batch, length = self.tokens.shape
        self.sizes = chunk_sizes(length)
        caches = [layer.cache_spec() for layer in self.model.spec.layers]
        self.cache = Cache(caches, batch, length, dtype, self.tokens.device)
        self.contexts = []
        for chunk in self.tokens.split(self.sizes, dim=1):
            self.contexts.append(self.model.prepare(chunk, self.cache)[0])
            self.cache.length += chunk.shape[1]
        self.full, self.cached = torch.empty(0), torch.empty(0)  # (batch, t, dim)
        self.inputs: list[Sequence[Tensor | None]] = []  # inputs of the layers, in one forward pass and in each chunk
        self.ctx, self.no_caches = self.model.prepare(self.tokens)

    @contextmanager
    def filled(self, *names: str) -> Iterator[None]:
        """Loads the weights of these submodules ("embed", "layers.3") for the duration of the block."""
        with as_stored():  # the source is opened anew, so that nothing else holds its pages
            matched = replace(self.matched, source=open_source(self.matched.source.path))
            prefixes = tuple(f"{name}." for name in names)
            mappings = [mapping for mapping in matched.mappings if mapping.module_names[0].startswith(prefixes)]
            self.model.load_state_dict(matched.read(mappings), strict=False, assign=True)
            fill_buffers(self.model)
            del matched
        try:
            yield
        finally:
            for name in names:
                empty(self.model.get_submodule(name))

    def visit(self, reference: LayerActivations) -> None:
        """Runs the zoo's layer, right after the reference's layer."""
        index = reference.layer
        if index == 0:
            others = (name for name in ("positions", "per_layer") if getattr(self.model.spec, name))
            with self.filled("embed", *others):
                if self.comparison is not None:
                    self.comparison.embedding(reference.x)
                embedded = self.model.embedded(self.tokens, self.ctx.positions)
                chunks = (each.split(self.sizes, dim=1) for each in (self.tokens, embedded))
                pairs = [(self.tokens, embedded), *zip(*chunks, strict=True)]
                self.inputs = [self.model.layer_inputs(*pair) for pair in pairs]
                self.full = self.cached = self.model.expanded(embedded)
        layer: Any = self.model.layers[index]
        with self.filled(f"layers.{index}"):
            if self.comparison is not None:
                self.comparison.layer(reference)
            ids = [self.tokens, *self.tokens.split(self.sizes, dim=1)]
            passes = zip([self.ctx, *self.contexts], self.inputs, ids, strict=True)
            whole, *contexts = (replace(each, layer_input=one[index], tokens=tokens) for each, one, tokens in passes)
            with self.selections["zoo"]:
                self.full = _run_and_keep(layer, self.full, whole, self.no_caches[index])
            chunks = self.cached.split(self.sizes, dim=1)
            with self.selections["cached"]:
                given = zip(chunks, contexts, strict=True)
                outs = [_run_and_keep(layer, x, ctx, self.cache.layers[index]) for x, ctx in given]
            self.cached = torch.cat(outs, dim=1)


def _run_and_keep(layer: Any, x: Tensor, ctx: ForwardContext, cache: Any) -> Tensor:
    """Returns the layer's output. Tensors that it shares with later layers are copied, since its cache may be
    overwritten before these read them."""
    before = dict(ctx.shared)
    out: Tensor = layer(x, ctx, cache)
    for name, value in ctx.shared.items():
        if value is not before.get(name) and isinstance(value, tuple):
            ctx.shared[name] = tuple(each.clone() if isinstance(each, Tensor) else each for each in value)
    return out


def run_streaming(models: Models, dtype: torch.dtype, results: Results) -> None:
    """Runs both models, a layer at a time."""
    selections = results.selections
    zoo, meta = LayerwiseRuns(models, dtype, selections), MetaModel(models.reference, dtype)
    with tqdm(total=len(models.spec.layers), unit="layer", disable=None, leave=False) as bar:

        def visit(layer: LayerActivations) -> None:
            with selections["reference"].paused():
                zoo.visit(layer)
            bar.update()

        with selections["reference"]:
            logits = _streamed_logits(
                meta, models.tokens, observed_layers(meta.model, models.spec, models.source.rules, visit)
            )
    streams = ("contraction",) if models.spec.streams else ()
    with zoo.filled("norm", *streams, "embed" if models.spec.tied else "head"):
        if zoo.comparison is not None:
            zoo.comparison.head(logits)
            results.parts, results.origin = tuple(zoo.comparison.parts), ORIGIN
        results.add(dtype, "reference", logits)
        del logits
        results.add(dtype, "zoo", zoo.model.logits(zoo.full))
        chunks = zoo.cached.split(zoo.sizes, dim=1)
        results.add(dtype, "cached", torch.cat([zoo.model.logits(chunk) for chunk in chunks], dim=1))


def _streamed_logits(meta: MetaModel, tokens: Tensor, observed: AbstractContextManager[None]) -> Tensor:
    """Returns the reference's logits. Its layers, embedding, last norm and head hold weights only while they run. The
    forward pass runs inside `observed`, whose hooks run after a layer has been emptied again."""
    names = {module: name for name, module in meta.model.named_modules()}
    head = meta.model.get_output_embeddings()
    layers = decoder_layers(meta.model)
    parts = (*(part for part in decoder_of(meta.model).children() if part is not layers), *layers, head)
    embedding = meta.model.get_input_embeddings()

    def reload(module: nn.Module, _: tuple[Any, ...]) -> tuple[Tensor] | None:
        meta.reload_submodule(names[module])
        return (tokens,) if module is embedding else None  # Llama 4 has moved them to its weights' device, meta

    before = (part.register_forward_pre_hook(reload) for part in parts)
    after = (part.register_forward_hook(lambda module, _, out: empty(module)) for part in parts)
    with removed_after(chain(before, after)), observed:
        return meta.model(tokens, use_cache=False).logits
