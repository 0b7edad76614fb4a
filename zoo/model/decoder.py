"""The whole model: embedding, layers, norm, head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.blocks.layer import Layer
from zoo.blocks.linear import Linear
from zoo.blocks.norms import RMSNorm
from zoo.core.cache import Cache, LayerCache, NoCache
from zoo.core.forward_context import ForwardContext, prepare_forward, prepare_forward_at
from zoo.core.linear import linear
from zoo.costs import Breakdown, linear_flops, sum_breakdowns
from zoo.errors import SpecError, UsageError
from zoo.model.compile import Compiled, Passes, head_pass, layer_pass, mark_dynamic_lengths
from zoo.model.cuda_graph import CudaGraph
from zoo.model.sampling import Sampler
from zoo.registry import Spec, swap


@dataclass(frozen=True)
class Decoder(Spec):
    """A decoder-only transformer. `layers` is the resolved plan, one spec a layer.

    `tied`: the head is the embedding's matrix. `embed_scale` multiplies embeddings. `context`: the positions it was
    trained or extended to, None if nobody says.
    """

    vocab: int
    dim: int
    layers: tuple[Layer, ...]
    norm: RMSNorm
    tied: bool = False
    embed_scale: float = 1.0
    context: int | None = None

    def check(self) -> None:
        self.require(len(self.layers) > 0, "a model needs at least one layer")

    def build(self) -> Model:
        """The module, allocated on the current default device in the current default dtype, not initialised."""
        return Model(self)

    def params(self) -> int:
        """Stored numbers, a tied head once."""
        return self._outside() + sum(n * layer.params(self.dim) for layer, n in self._counted)

    def active_params(self) -> int:
        """Stored numbers less those of experts that a token is not routed to."""
        return self._outside() + sum(n * layer.active_params(self.dim) for layer, n in self._counted)

    def read_params(self, tokens: int) -> float:
        """Stored numbers that a pass of `tokens` tokens, of all sequences together, reads: all but the rows of an
        untied embedding beyond one a token, and the experts that none of them is expected to be routed to."""
        unread = 0 if self.tied else max(self.vocab - tokens, 0) * self.dim
        return self._outside() - unread + sum(n * layer.read_params(self.dim, tokens) for layer, n in self._counted)

    def param_breakdown(self) -> Breakdown:
        """`params` by part: embedding, head (0 where it is tied), and the parts of the blocks."""
        table = self.vocab * self.dim
        outside = {"embedding": table, "head": 0 if self.tied else table} | dict(self.norm.param_breakdown(self.dim))
        return sum_breakdowns([(1, outside), *((n, layer.param_breakdown(self.dim)) for layer, n in self._counted)])

    def embedding_params(self) -> int:
        """Stored numbers of the embedding and, where it is not tied, the head."""
        return self.vocab * self.dim * (1 if self.tied else 2)

    def flops(self, past: int, new: int, logits: int | None = None, causal: bool = True) -> int:
        """FLOPs of a forward of `new` tokens after `past`, for one sequence, by the convention of zoo.costs.

        `logits`: positions that go through the head (None: all `new`). `causal=False` counts every pair that a masked
        dense kernel computes, the form torch's counter sees.
        """
        body = sum(n * layer.flops(self.dim, past, new, causal) for layer, n in self._counted)
        return body + linear_flops(new if logits is None else logits, self.dim, self.vocab)

    def flop_breakdown(self, past: int, new: int, logits: int | None = None, causal: bool = True) -> Breakdown:
        """`flops` by part: head, and the parts of the blocks."""
        head = {"head": linear_flops(new if logits is None else logits, self.dim, self.vocab)}
        layers = ((n, layer.flop_breakdown(self.dim, past, new, causal)) for layer, n in self._counted)
        return sum_breakdowns([*layers, (1, head)])

    def kv_bytes(self, context: int, batch: int = 1, dtype: torch.dtype = torch.bfloat16) -> int:
        """Bytes of a cache made for `context` tokens: what `new_cache(batch, context)` allocates."""
        stored = ((layer.cache_spec(), n) for layer, n in self._counted)
        return batch * dtype.itemsize * sum(n * kept.elements() * kept.tokens(context) for kept, n in stored)

    def kv_growth(self, dtype: torch.dtype = torch.bfloat16) -> tuple[int, int]:
        """(fixed bytes, bytes per token) of one sequence's cache: exact once every window is full."""
        fixed = slope = 0
        for layer, n in self._counted:
            kept = layer.cache_spec()
            numbers = n * kept.elements() * dtype.itemsize
            fixed += numbers * (kept.window or 0)
            slope += numbers if kept.window is None else 0
        return fixed, slope

    def _outside(self) -> int:
        return self.embedding_params() + self.norm.params(self.dim)

    @cached_property
    def _counted(self) -> tuple[tuple[Layer, int], ...]:
        """Each distinct layer and how many there are. Counted once: hashing a long plan costs more than any figure."""
        return tuple(Counter(self.layers).items())


def swap_layers(
    spec: Decoder, which: Callable[[int], bool], kind: type[Spec], change: Spec | Callable[[Any], Spec]
) -> Decoder:
    """`swap` in the layers i for which `which(i)` is true. Raises SpecError when none is, or none holds a `kind`."""
    chosen = {i for i in range(len(spec.layers)) if which(i)}
    if not chosen:
        raise SpecError(f"nothing to swap: none of the {len(spec.layers)} layers was chosen")
    layers = (swap(layer, kind, change) if i in chosen else layer for i, layer in enumerate(spec.layers))
    return replace(spec, layers=tuple(layers))


class Model(nn.Module):
    """The module of a Decoder: `embed`, `layers`, `norm`, and `head` unless that is tied to `embed`."""

    def __init__(self, spec: Decoder) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab, spec.dim, _weight=torch.empty(spec.vocab, spec.dim))
        kinds = {layer: layer for layer in spec.layers}  # equal layers get one spec, by which a compiler knows them
        self.layers = nn.ModuleList(kinds[layer].build(spec.dim) for layer in spec.layers)
        self.norm = spec.norm.build(spec.dim)
        self.head = None if spec.tied else Linear(spec.dim, spec.vocab, bias=False)
        self._rotary = list(dict.fromkeys(need for layer in spec.layers for need in layer.rotary()))
        self._stored = tuple(layer.cache_spec() for layer in spec.layers)
        self._no_cache: Sequence[LayerCache] = [NoCache(stored.window) for stored in self._stored]
        self._passes = Passes([layer_pass] * len(spec.layers), head_pass, replayable=False)
        self._compiled: Compiled | None = None

    def __getstate__(self) -> dict[str, Any]:
        """As torch's own modules: a copy, and what is unpickled, is not compiled."""
        return self.__dict__ | {"_compiled": None}

    def compile(self, **options: Any) -> None:
        """Compile in place, one function for each distinct layer; passes are compiled as they come, once for a first
        pass, a pass after others and a lone token each, for every length. On CUDA lone tokens are replayed as a graph,
        which each cache captures once. `options` are torch.compile's.

        What is changed afterwards is seen on the next pass: weights, their dtype, device and need of gradients, train
        and eval mode, modules put in the place of others, which are compiled apart, and hooks, whose layers run
        uncompiled. A copy is not compiled. Raises NotAvailable where there is no C++ compiler for the CPU.
        """
        self._compiled = Compiled(self, options)

    def forward(self, tokens: Tensor, cache: Cache | None = None, logits_to_keep: int = 0) -> Tensor:
        """Token ids (batch, new) -> logits (batch, new, vocab), or of the last `logits_to_keep` positions if not 0.

        With a `cache` the tokens follow those it holds and are added to it. Raises CacheFullError if they do not fit.
        """
        if logits_to_keep < 0:
            raise UsageError(f"logits_to_keep={logits_to_keep} is below 0")
        compiled = self._compiled
        passes = self._passes if compiled is None else compiled.passes()
        if compiled is not None and cache is not None and _is_replayable(passes, tokens, cache):
            logits = self._decode_graph(tokens, cache, passes, compiled.fingerprint())
        else:
            logits = self._through(tokens, *self.prepare(tokens, cache), passes, logits_to_keep)
        if compiled is not None:
            compiled.settle()
        if cache is not None:
            cache.length += tokens.shape[1]
        return logits

    def _through(
        self,
        tokens: Tensor,
        step: ForwardContext,
        slots: Sequence[LayerCache],
        passes: Passes | None = None,
        logits_to_keep: int = 0,
    ) -> Tensor:
        passes = passes or self._passes
        if self._compiled is not None:
            mark_dynamic_lengths(step, tokens.shape[1])
        x = self.embedded(tokens)
        for layer, run, slot in zip(self.layers, passes.layers, slots, strict=True):
            x = run(layer, x, step, slot)
        return passes.head(self, x[:, -logits_to_keep:])

    def _decode_graph(self, tokens: Tensor, cache: Cache, passes: Passes, fingerprint: Hashable) -> Tensor:
        """A lone token's pass as a CUDA graph, captured anew for another model, or where this one's weights moved."""
        _check(tokens)
        cache.admit(self._stored, *tokens.shape)
        if cache.graph is None or not cache.graph.is_of(self, fingerprint):
            step = partial(self._decode_step, cache=cache, passes=passes)
            cache.graph = None  # its memory is free before the next is captured
            cache.graph = CudaGraph(step, tokens, cache.length, self, fingerprint)
        return cache.graph(tokens, cache.length)

    def _decode_step(self, tokens: Tensor, position: Tensor, cache: Cache, passes: Passes) -> Tensor:
        """Tokens (b, 1) at a `position` (1,) that only the device knows -> logits, over a static cache."""
        return self._through(
            tokens, prepare_forward_at(position, cache.length, self._rotary, cache.layers), cache.layers, passes
        )

    def prepare(self, tokens: Tensor, cache: Cache | None = None) -> tuple[ForwardContext, Sequence[LayerCache]]:
        """A forward pass of `tokens`, planned, and the slot of each layer in it."""
        _check(tokens)
        past, slots = 0, self._no_cache
        if cache is not None:
            cache.admit(self._stored, *tokens.shape)
            past, slots = cache.length, cache.layers
        return prepare_forward(past, tokens.shape[1], self._rotary, slots, tokens.device), slots

    def embedded(self, tokens: Tensor) -> Tensor:
        """Token ids (batch, t) -> what the first layer is given (batch, t, dim)."""
        x = self.embed(tokens)
        if self.spec.embed_scale != 1.0:
            x = x * torch.tensor(self.spec.embed_scale, dtype=x.dtype)  # rounded first, as Gemma's own code does
        return x

    def logits(self, x: Tensor) -> Tensor:
        """What the last layer gives (batch, t, dim) -> logits (batch, t, vocab)."""
        x = self.norm(x)
        return linear(x, self.embed.weight) if self.head is None else self.head(x)

    def new_cache(self, batch: int, tokens: int) -> Cache:
        """An empty cache for `batch` sequences of up to `tokens` tokens, of this model's dtype and on its device."""
        weight = self.embed.weight
        return Cache(self._stored, batch, tokens, weight.dtype, weight.device)

    def stream(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Iterable[int] = (),
    ) -> Iterator[Tensor]:
        """Continue prompts (batch, t) of equal length; yields each step's token ids (batch,).

        Ends after `max_new_tokens`, or when every row has met one of the token ids in `stop`; a row that has repeats
        its own. `temperature` 0 takes the likeliest token; otherwise samples among the `top_k` likeliest and the fewest
        that hold `top_p` of the probability. The call raises UsageError for tokens or options that make no sense; the
        model runs as the result is iterated over.
        """
        _check(tokens, self.spec.vocab)
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens={max_new_tokens} is below 1")
        ends = torch.tensor(sorted(set(stop)), dtype=torch.long, device=tokens.device)
        return self._stream(tokens, max_new_tokens, Sampler(temperature, top_k, top_p, seed, tokens.device), ends)

    @torch.no_grad()
    def _stream(self, tokens: Tensor, max_new_tokens: int, sampler: Sampler, ends: Tensor) -> Iterator[Tensor]:
        """`stream`, its arguments checked: a generator's body runs at the first `next`, and not at the call."""
        cache = self.new_cache(tokens.shape[0], tokens.shape[1] + max_new_tokens)
        done = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
        last, fed = tokens[:, -1], tokens
        for _ in range(max_new_tokens):
            drawn = sampler(self(fed, cache, logits_to_keep=1)[:, -1])
            last = torch.where(done, last, drawn)
            yield last
            done = torch.isin(last, ends)  # a row that was done still is: it repeats the token that ended it
            if len(ends) and done.all():
                return
            fed = last[:, None]

    def generate(self, tokens: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
        """`stream`, gathered: the new tokens (batch, new)."""
        return torch.stack(list(self.stream(tokens, max_new_tokens, **options)), dim=1)


def _is_replayable(passes: Passes, tokens: Tensor, cache: Cache) -> bool:
    """Whether a pass may be replayed: one token on a GPU over a cache of static shapes, without gradients or hooks."""
    return (
        passes.replayable
        and cache.static
        and tokens.ndim == 2
        and tokens.shape[1] == 1
        and tokens.device.type == "cuda"
        and not torch.is_grad_enabled()
    )


def _check(tokens: Tensor, vocab: int | None = None) -> None:
    """Raise UsageError unless `tokens` are integers (batch, new), and ids below `vocab` where that is asked: looking at
    the ids makes a device wait."""
    if tokens.ndim != 2 or tokens.numel() == 0 or tokens.dtype not in (torch.int32, torch.int64):
        raise UsageError(f"tokens must be integers of shape (batch, new), not {tokens.dtype} {tuple(tokens.shape)}")
    if vocab is not None and not 0 <= tokens.min() <= tokens.max() < vocab:
        raise UsageError(f"token ids must be from 0 to {vocab - 1}, not {int(tokens.min())} to {int(tokens.max())}")


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Weights of a fresh model: matrices normal with variance 1 / fan-in, norms the identity, biases and sinks zero."""
    generators: dict[torch.device, torch.Generator] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim >= 2 and not name.endswith("bias"):  # experts' biases are stacked
                generator = generators.setdefault(weight.device, torch.Generator(weight.device).manual_seed(seed))
                weight.normal_(std=weight.shape[-1] ** -0.5, generator=generator)
            else:
                weight.fill_(getattr(module, "identity", {}).get(name, 0.0))  # a norm says which weight scales by one
