"""The module of a whole model (embedding, layers, norm, head): forward passes with or without a cache; generation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.arguments import count, token_count
from zoo.blocks.layer import run_layer
from zoo.core.cache import Cache, NoCache, prepare_forward
from zoo.core.devices import allocating
from zoo.core.forward_context import ForwardContext, LayerCache, recordings
from zoo.core.ops.linear import Linear, linear
from zoo.errors import UsageError
from zoo.model.compile import CompiledModel, CudaGraph, ForwardFunctions, mark_dynamic_lengths, mark_handed_on
from zoo.model.decoder import Decoder
from zoo.model.sampling import GenerationConfig, Sampler, continued


class Model(nn.Module):
    """The module of a Decoder: `embed`, `layers`, `norm`, and `head` unless it is tied to `embed`. It is allocated on
    the default device in the default dtype, and not initialised.

    `activation_checkpointing`: a pass with gradients and without a cache keeps only the input of each layer, and
    recomputes the layer in the backward pass (Chen et al. 2016). It may be set at any time, also after compilation.
    `generation`: the published settings of generation. `text`: a weights.tokenizer.Text, which opens the tokenizer.
    `weights.load` sets both, and `weights.save` stores them.
    """

    activation_checkpointing: bool = False
    generation: GenerationConfig = GenerationConfig()
    text: Any = None

    def __init__(self, spec: Decoder) -> None:
        super().__init__()
        self.spec = spec
        self.vocab = spec.vocab
        self.embed = nn.Embedding(spec.vocab, spec.dim, _weight=torch.empty(spec.vocab, spec.dim))
        shared = {layer: layer for layer in spec.layers}  # equal layers share one spec, which identifies them to torch
        self.layers = nn.ModuleList(shared[layer].build(spec.dim) for layer in spec.layers)
        self.norm = spec.norm.build(spec.dim)
        self.head = None if spec.tied else Linear(spec.dim, spec.vocab, bias=False)
        self.positions = spec.positions.build(spec.dim) if spec.positions else None
        per_layer = spec.per_layer
        self.per_layer = per_layer.build(spec.dim, spec.vocab, len(spec.layers)) if per_layer else None
        self.contraction = spec.streams.build(spec.dim) if spec.streams else None
        # For each layer: tensors from earlier layers, whether it hands any on, whether it reads token ids.
        self._exchanges = [(layer.takes(), bool(layer.hands_on()), layer.reads_tokens) for layer in spec.layers]
        self._tables = list(dict.fromkeys(need for layer in spec.layers for need in layer.tables()))
        switches = (getattr(table, "switch", None) for table, _ in self._tables)
        self._switches = sorted({length for length in switches if length is not None})
        self._cache_specs = tuple(layer.cache_spec() for layer in spec.layers)
        self._no_cache: Sequence[LayerCache] = [NoCache(cache_spec) for cache_spec in self._cache_specs]
        self._eager = ForwardFunctions([run_layer] * len(spec.layers), Model.logits, replayable=False)
        self._compiled: CompiledModel | None = None
        self._tokenizer: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state without compiled functions. As with torch's own modules, a copy is not compiled."""
        return self.__dict__ | {"_compiled": None}

    def compile(self, **options: Any) -> None:
        """Compiles the model in place, one function for each distinct layer. Compilation happens at the first prefill,
        the first prefill over a filled cache and the first single token; each time the code serves all lengths. On CUDA
        a decode step is replayed as a CUDA graph that is captured once per cache. `options` are torch.compile's.

        Later changes take effect in the next pass: weights, their dtype, device and requires_grad, train and eval mode,
        replaced modules and hooks. Replaced modules are compiled separately; layers with hooks run uncompiled. A copy
        of the model is not compiled. Raises NotAvailable if the model is on the CPU and there is no C++ compiler.
        """
        self._compiled = CompiledModel(self, options)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that was loaded with the model, a `tokenizers.Tokenizer`; None if there is none.

        It is opened at the first access. Raises NotAvailable if its package is missing or its kind is not supported.
        """
        if self._tokenizer is None and self.text is not None:
            self._tokenizer = self.text.tokenizer()
        return self._tokenizer

    def forward(
        self,
        tokens: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Token ids (batch, new) -> logits (batch, new, vocab), or only the last `logits_to_keep` positions' logits.

        `logits_to_keep` = 0 returns all positions. With a `cache`, the tokens follow the cached tokens and are added to
        it. `inputs_embeds` (batch, new, dim) replaces `model.embed(tokens)`; an embedding scale and learned positions
        are still applied. `tokens` may then be None, unless layers read them. Raises CacheFullError if the tokens do
        not fit.
        """
        if logits_to_keep < 0:
            raise UsageError(f"logits_to_keep={logits_to_keep} is below 0")
        compiled = self._compiled
        functions = self._eager if compiled is None else compiled.functions(bool(recordings))
        given = self._checked_input(tokens, inputs_embeds)
        if compiled and cache is not None and _can_replay(functions, given, cache):
            logits = self._replay(given, cache, functions, compiled)
        else:
            ctx, layer_caches = self.prepare(given, cache)
            logits = self._run(tokens, ctx, layer_caches, functions, logits_to_keep, inputs_embeds)
        if cache is not None:
            cache.length += given.shape[1]
        return logits

    def _checked_input(self, tokens: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Returns the input of a pass: `inputs_embeds` (batch, new, dim) if given, otherwise `tokens` (batch, new).
        Raises UsageError for a wrong shape or dtype, and for missing token ids if layers read them."""
        if tokens is not None:
            _check_tokens(tokens)
        if inputs_embeds is None:
            if tokens is None:
                raise UsageError("a pass needs tokens, inputs_embeds or both")
            return tokens
        shape, dtype = inputs_embeds.shape, self.embed.weight.dtype
        expected = (*(shape[:2] if tokens is None else tokens.shape), self.spec.dim)
        if inputs_embeds.ndim != 3 or shape != expected or not shape.numel() or inputs_embeds.dtype != dtype:
            where = "(batch, new, dim)" if tokens is None else "(batch, new, dim), with a row for each token"
            got = f"{inputs_embeds.dtype} {tuple(shape)}"
            raise UsageError(f"inputs_embeds must be {dtype} of shape {where} and dim {self.spec.dim}, not {got}")
        if tokens is None and (self.per_layer is not None or any(reads for *_, reads in self._exchanges)):
            raise UsageError("layers of this model read token ids: give tokens as well as inputs_embeds")
        return inputs_embeds

    def prepare(self, given: Tensor, cache: Cache | None = None) -> tuple[ForwardContext, Sequence[LayerCache]]:
        """Returns the context of a pass over tokens (batch, new) or embeddings (batch, new, dim), and all layers'
        caches."""
        batch, new = given.shape[:2]
        past, layer_caches = 0, self._no_cache
        if cache is not None:
            cache.require_room(self._cache_specs, batch, new)
            past, layer_caches = cache.length, cache.layers
        self._require_positions(past + new)
        ctx = prepare_forward(past, new, self._tables, layer_caches, given.device, self.embed.weight.dtype)
        return ctx, layer_caches

    def _run(
        self,
        tokens: Tensor | None,
        ctx: ForwardContext,
        layer_caches: Sequence[LayerCache],
        functions: ForwardFunctions,
        logits_to_keep: int = 0,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        if self._compiled is not None:
            mark_dynamic_lengths(ctx, len(ctx.positions), layer_caches)
        recomputes = self.activation_checkpointing and torch.is_grad_enabled() and layer_caches is self._no_cache
        recording = recordings[-1] if recordings else None
        x = self.embedded(tokens, ctx.positions, inputs_embeds)
        inputs = self.layer_inputs(tokens, x)
        reads_ids = any(reads_tokens for *_, reads_tokens in self._exchanges)
        if self._compiled is not None and tokens is not None and reads_ids:
            tokens = tokens.clone(memory_format=torch.contiguous_format)  # a prompt's slice has other strides
        x = self.expanded(x)
        for (takes, hands_on, reads_tokens), layer, run, layer_cache, layer_input in zip(
            self._exchanges, self.layers, functions.layers, layer_caches, inputs, strict=True
        ):
            seen = ctx
            if layer_input is not None or ctx.shared or hands_on or reads_tokens or recording is not None:
                # The layer gets a new dict with only the tensors that it reads. Compiled code is specific to the dict's
                # keys, and a layer that is recomputed for the backward pass must not find the tensors of later layers.
                taken = {name: ctx.shared[name] for name in takes}
                seen = ForwardContext(
                    ctx.positions,
                    ctx.tables,
                    ctx.views,
                    routing=None if recording is None else [],
                    shared=taken,
                    handed_on={} if hands_on else None,
                    layer_input=layer_input,
                    tokens=tokens if reads_tokens else None,
                )
            arguments = layer, x, seen, layer_cache
            out = checkpoint(run, *arguments, use_reentrant=False) if recomputes else run(*arguments)
            x = out.x
            if out.handed_on is not None:
                if self._compiled is not None:
                    mark_handed_on(out.handed_on)
                ctx.shared.update(out.handed_on)
            if recording is not None:
                recording += out.routing or ()
        return functions.head(self, x[:, -logits_to_keep:])

    def _replay(self, tokens: Tensor, cache: Cache, functions: ForwardFunctions, compiled: CompiledModel) -> Tensor:
        """Runs single-token decode as a CUDA graph, which is captured at the first token and after model changes."""
        cache.require_room(self._cache_specs, *tokens.shape)
        self._require_positions(cache.length + 1)
        fingerprint = compiled.fingerprint()
        graph, captured = compiled.graphs.get(cache, (None, None))
        if graph is None or captured != fingerprint:
            graph = None
            compiled.graphs.pop(cache, None)  # frees its memory before the next capture
            before = cache.snapshot()
            graph = CudaGraph(partial(self._decode_step, cache=cache, functions=functions), tokens, cache.length)
            cache.restore(before)  # the warm-up steps advanced the states
            compiled.graphs[cache] = graph, fingerprint
        return graph(tokens, cache.length)

    def _decode_step(self, tokens: Tensor, position: Tensor, cache: Cache, functions: ForwardFunctions) -> Tensor:
        """Tokens (b, 1) at a `position` (1,), a tensor on the device -> logits (b, 1, vocab), over a static cache."""
        dtype = self.embed.weight.dtype
        ctx = prepare_forward(cache.length, 1, self._tables, cache.layers, dtype=dtype, position=position)
        return self._run(tokens, ctx, cache.layers, functions)

    def embedded(self, tokens: Tensor | None, positions: Tensor, inputs_embeds: Tensor | None = None) -> Tensor:
        """Token ids (batch, t) at `positions` (t,) -> the first layer's input (batch, t, dim). `inputs_embeds` (batch,
        t, dim) replaces the embeddings of the token ids."""
        x: Tensor = self.embed(tokens) if inputs_embeds is None else inputs_embeds.contiguous()
        if self.spec.embed_scale != 1.0:
            x = x * torch.tensor(self.spec.embed_scale, dtype=x.dtype)  # rounded first, as in Gemma's own code
        return x if self.positions is None else x + self.positions(positions)

    def layer_inputs(self, tokens: Tensor | None, x: Tensor) -> Sequence[Tensor | None]:
        """Token ids (batch, t), first layer's input (batch, t, dim) -> each layer's own input (batch, t, width)."""
        return [None] * len(self.layers) if self.per_layer is None else self.per_layer(tokens, x).unbind()

    def expanded(self, x: Tensor) -> Tensor:
        """Embeddings (batch, t, dim) -> residual streams (batch, t, streams, dim); unchanged if there is only one."""
        return x if self.spec.streams is None else self.spec.streams.expand(x)

    def logits(self, x: Tensor) -> Tensor:
        """The last layer's output, (batch, t, dim) or with several streams (batch, t, streams, dim) -> logits (batch,
        t, vocab)."""
        logits = self.scores(self.norm(x if self.contraction is None else self.contraction(x)))
        if self.spec.logits_scaling != 1.0:
            logits = logits / self.spec.logits_scaling
        cap = self.spec.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def scores(self, x: Tensor) -> Tensor:
        """Runs the head: (batch, t, dim) -> (batch, t, vocab)."""
        scores: Tensor = linear(x, self.embed.weight) if self.head is None else self.head(x)
        return scores

    def twin(self) -> Model:
        """Returns another model of the same spec, on the meta device."""
        with torch.device("meta"):
            return Model(self.spec).eval()

    def reference(self) -> Model:
        """Returns a fresh model from the spec, with one layer of each kind."""
        return Model(replace(self.spec, layers=tuple(dict.fromkeys(self.spec.layers))))

    def _require_positions(self, length: int) -> None:
        """Raises UsageError if a sequence of `length` tokens has more tokens than there are learned positions."""
        positions = self.spec.positions
        if positions is not None and length > positions.count:
            raise UsageError(f"the model has {positions.count} learned positions, the sequence {length} tokens")

    def new_cache(self, batch: int, tokens: int | str) -> Cache:
        """Returns an empty cache for `batch` sequences of up to `tokens` tokens (a number or "32k"), with this model's
        dtype and device."""
        batch, tokens = count(batch, "batch"), token_count(tokens, "tokens", least=1)
        weight = self.embed.weight
        return Cache(self._cache_specs, batch, tokens, weight.dtype, weight.device, switches=self._switches)

    def stream(
        self,
        tokens: Tensor | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Iterable[int] | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Continues prompts (batch, t) of equal length. Yields each step's token ids (batch,).

        Generation ends after `max_new_tokens`, or when every row has produced one of the token ids in `stop`. By
        default these are the ids in `model.generation` (none in a model with random weights). A stopped row repeats its
        stop token. `temperature` 0 takes the most likely token; otherwise `Sampler` samples with `top_k` and `top_p`.

        With a `cache`, the prompt follows the cached tokens. Afterwards the cache holds all tokens except the last
        generated token, with which the next prompt must begin. `inputs_embeds` are the prompt's embeddings, as in
        `forward`: generate(inputs_embeds=embeds, max_new_tokens=4).

        If keys are rotated differently beyond some length (LongRoPE), the cache is recomputed once the sequence exceeds
        it. The call itself raises UsageError for invalid tokens or options or a cache of another model, and
        CacheFullError for a cache without room for all new tokens. The model runs during iteration over the result.
        """
        given = self._checked_input(tokens, inputs_embeds)
        if tokens is not None:
            _check_tokens(tokens, self.vocab)
        max_new_tokens = count(max_new_tokens, "max_new_tokens")
        sampler = Sampler(temperature, top_k, top_p, seed, given.device)
        stop = self.generation.stop if stop is None else stop
        stop_ids = torch.tensor(sorted(set(stop)), dtype=torch.long, device=given.device)
        batch, new = given.shape[0], given.shape[1] + max_new_tokens - 1  # the last token is not stored
        if cache is None:
            cache = self.new_cache(batch, new)
        cache.require_room(self._cache_specs, batch, new)
        if (switch := cache.crossed_switch(new)) is not None:
            raise UsageError(
                f"the model rotates keys differently beyond {switch} tokens (LongRoPE), and the cache holds "
                f"{cache.length}: generate from the whole text, with an empty cache"
            )
        return continued(self, tokens, inputs_embeds, cache, max_new_tokens, sampler, stop_ids)

    def generate(
        self,
        tokens: Tensor | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Iterable[int] | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Returns all tokens of `stream` at once, (batch, new). The arguments are those of `stream`."""
        options = temperature, top_k, top_p, seed, stop, cache, inputs_embeds
        return torch.stack(list(self.stream(tokens, max_new_tokens, *options)), dim=1)


def fill_buffers(model: Model, device: str | torch.device = "cpu", every: bool = False) -> None:
    """Sets buffers that checkpoints do not store to their values in a fresh model: buffers on the meta device, or all
    such buffers if `every`. The fresh parameters are allocated but not written, so that they take no memory."""
    spec, parts = model.spec, [*zip(model.spec.layers, model.layers, strict=True), (model.spec.norm, model.norm)]
    for block, module in parts:
        wanted = [
            (parent, name, f"{path}.{name}".lstrip("."))
            for path, parent in module.named_modules()
            for name, buffer in parent.named_buffers(recurse=False)
            if (buffer.is_meta or every) and name not in getattr(parent, "stored_buffers", ())
        ]
        if wanted:
            with allocating("cpu", model.embed.weight.dtype):
                fresh = block.build(spec.dim)
            for parent, name, path in wanted:
                setattr(parent, name, fresh.get_buffer(path).to(device))


def _can_replay(functions: ForwardFunctions, given: Tensor, cache: Cache) -> bool:
    """Whether a pass is a decode step for a CUDA graph: one token on a GPU, a static cache, no gradients, no hooks."""
    is_decode = given.is_cuda and given.ndim == 2 and given.shape[1] == 1  # embeddings have three axes
    return is_decode and cache.static and functions.replayable and not torch.is_grad_enabled()


def _check_tokens(tokens: Tensor, vocab: int | None = None) -> None:
    """Raises UsageError unless `tokens` are integers (batch, new), below `vocab` if given. That check waits for the
    device."""
    if not isinstance(tokens, Tensor):
        raise UsageError(f"tokens must be a torch.Tensor of integers (batch, new), not a {type(tokens).__name__}")
    if tokens.ndim != 2 or tokens.numel() == 0 or tokens.dtype not in (torch.int32, torch.int64):
        raise UsageError(f"tokens must be integers of shape (batch, new), not {tokens.dtype} {tuple(tokens.shape)}")
    if vocab is not None and not 0 <= tokens.min() <= tokens.max() < vocab:
        raise UsageError(f"token ids must be from 0 to {vocab - 1}, not {int(tokens.min())} to {int(tokens.max())}")
