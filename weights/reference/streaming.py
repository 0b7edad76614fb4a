"""The comparison of models too large for memory: both in step, one layer's weights at a time.

Peak memory is the embedding or two layers, whichever is more, beside the activations: the logits of the prompts are
among these. Every file is read once a model, twice in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from weights.loading import Source, open_source, read_all
from weights.matching import check, match, skipped, text_names
from weights.reference.layers import Passed, Probe
from weights.reference.meta_model import Refill, empty, shell
from weights.reference.model import Reference, watched
from weights.reference.routing import choices, gathered
from weights.reference.runs import Runs, chunks
from zoo import catalog
from zoo.core.cache import Cache
from zoo.model.decoder import Decoder

HEAD = "lm_head"


class LoadedParts:
    """The zoo's model on the meta device, seen to fit its source; `holding` fills parts of it for a while."""

    def __init__(self, spec: Decoder, source: Source, dtype: torch.dtype) -> None:
        self.source, self.model = source, catalog.allocate(spec, "meta", dtype)
        stored = text_names(source.path, source.entries())
        self.parameters = dict(self.model.named_parameters())
        self.moves = match(spec, self.parameters, source.rules, stored)
        beside = {name for names in skipped(spec, source.rules, stored).values() for name in names}
        check(source.path, self.moves, self.parameters, stored, beside)

    @contextmanager
    def holding(self, *parts: str) -> Iterator[None]:
        """LoadedParts by name: "embed", "layers.3"."""
        source = open_source(self.source.path)  # anew: once emptied, nothing holds the pages of its files
        moves = [move for move in self.moves if move.ours[0].startswith(tuple(f"{part}." for part in parts))]
        stored = text_names(source.path, source.entries())
        self.model.load_state_dict(read_all(moves, self.parameters, source, stored, "cpu"), strict=False, assign=True)
        del source, stored
        try:
            yield
        finally:
            for part in parts:
                empty(self.model.get_submodule(part))


class Lockstep:
    """The zoo's runs, a layer at a time: in full, and in chunks through a cache."""

    def __init__(self, parts: LoadedParts, tokens: Tensor, dtype: torch.dtype) -> None:
        self.parts, self.tokens, self.probe = parts, tokens, Probe(parts.model, tokens, dtype)
        self.batch, length = tokens.shape
        self.sizes = chunks(length)
        stored = [layer.cache_spec() for layer in parts.model.spec.layers]
        self.cache = Cache(stored, self.batch, length, dtype, tokens.device)
        self.steps = []
        for part in tokens.split(self.sizes, dim=1):
            self.steps.append(parts.model.prepare(part, self.cache)[0])
            self.cache.length += part.shape[1]
        self.full, self.cached = torch.empty(0), torch.empty(0)  # (batch, t, dim)
        self.chosen: dict[str, list[Tensor]] = {"reference": [], "full": [], "cached": []}
        self.last = torch.empty(0)

    def visit(self, seen: Passed) -> None:
        """The zoo's layer, after the reference's."""
        if seen.layer == 0:
            with self.parts.holding("embed"):
                self.probe.embedding(seen.x)
                self.full = self.cached = self.parts.model.embedded(self.tokens)
        layer: Any = self.parts.model.layers[seen.layer]
        with self.parts.holding(f"layers.{seen.layer}"):
            self.probe.layer(seen)
            with self._choices(layer, "full"):
                self.full = layer(self.full, self.probe.ctx, self.probe.layer_caches[seen.layer])
            slot, pieces = self.cache.layers[seen.layer], self.cached.split(self.sizes, dim=1)
            with self._choices(layer, "cached"):
                done = [layer(piece, step, slot) for piece, step in zip(pieces, self.steps, strict=True)]
            self.cached = torch.cat(done, dim=1)
        if seen.experts is not None:
            self.chosen["reference"].append(seen.experts.unflatten(0, (self.batch, -1)))
        self.last = seen.out

    @contextmanager
    def _choices(self, layer: nn.Module, run: str) -> Iterator[None]:
        with choices(layer) as made:
            yield
        self.chosen[run] += gathered(made, self.batch)


def streamed(spec: Decoder, ours: Source, theirs: Source, dtype: torch.dtype, tokens: Tensor) -> Runs:
    """Both models, a layer at a time; the reference in float32 before, where that is another."""
    zoo = Lockstep(LoadedParts(spec, ours, dtype), tokens, dtype)
    exact = None if dtype == torch.float32 else _logits(shell(theirs, torch.float32), theirs, tokens)
    model = shell(theirs, dtype)
    with tqdm(total=len(spec.layers), unit="layer", disable=None, leave=False) as bar:

        def visit(seen: Passed) -> None:
            zoo.visit(seen)
            bar.update()

        refill = Refill(model, theirs)
        with _streaming(model, refill), watched(Reference(model, ""), spec, ours.rules, visit):
            hidden = model.get_decoder()(tokens, use_cache=False).last_hidden_state
    logits = _head(model, refill, hidden)
    with zoo.parts.holding("norm", "embed" if spec.tied else "head"):
        zoo.probe.head(zoo.last, logits)
        full = zoo.parts.model.logits(zoo.full)
        cached = torch.cat([zoo.parts.model.logits(piece) for piece in zoo.cached.split(zoo.sizes, dim=1)], dim=1)
    return Runs(logits, full, cached, exact, zoo.chosen, tuple(zoo.probe.parts), "text part, weights read by the zoo")


def _logits(model: Any, source: Source, tokens: Tensor) -> Tensor:
    refill = Refill(model, source)
    with _streaming(model, refill):
        hidden = model.get_decoder()(tokens, use_cache=False).last_hidden_state
    return _head(model, refill, hidden)


def _head(model: Any, refill: Refill, hidden: Tensor) -> Tensor:
    head = model.get_submodule(HEAD)
    refill(head, HEAD)
    logits: Tensor = head(hidden)
    empty(head)
    return logits


@contextmanager
def _streaming(model: Any, refill: Refill) -> Iterator[None]:
    """Meanwhile, every layer of the reference, its embedding and its last norm hold weights only while they run."""
    decoder = model.get_decoder()
    names = {module: name for name, module in model.named_modules()}
    parts = [decoder.embed_tokens, *decoder.layers, decoder.norm]
    hooks = []
    for part in parts:
        hooks.append(part.register_forward_pre_hook(lambda module, args: refill(module, names[module])))
        hooks.append(part.register_forward_hook(lambda module, args, out: empty(module)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
