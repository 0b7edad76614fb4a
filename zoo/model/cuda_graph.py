"""One decode step on a GPU as a CUDA graph: its hundreds of kernels are launched as one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from zoo.core.cache import Cache

WARMUP_STEPS = 3  # before the capture: kernels are compiled and workspaces allocated in them
DecodeStep = Callable[[Tensor, Tensor], Tensor]  # tokens (b, 1) and their position (1,) -> logits (b, 1, vocab)


class CudaGraph:
    """A decode step, captured once and replayed for every token after it.

    The step may depend on nothing but its two arguments and memory that stays where it is: the weights, and a static
    cache. The warm-up steps write at `position`, where the step itself writes next.
    """

    def __init__(self, step: DecodeStep, tokens: Tensor, position: int) -> None:
        self._tokens = tokens.clone()
        self._position = torch.full((1,), position, device=tokens.device)
        warmup = torch.cuda.Stream(tokens.device)
        warmup.wait_stream(torch.cuda.current_stream(tokens.device))
        with torch.cuda.stream(warmup):
            for _ in range(WARMUP_STEPS):
                step(self._tokens, self._position)
        torch.cuda.current_stream(tokens.device).wait_stream(warmup)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = step(self._tokens, self._position)

    def __call__(self, tokens: Tensor, position: int) -> Tensor:
        """Logits of the tokens at this position, in memory that the next replay does not overwrite."""
        self._tokens.copy_(tokens)
        self._position.fill_(position)
        self._graph.replay()
        return self._logits.clone()


class CudaGraphs:
    """The graphs of one model's decode step, one for each cache, for as long as the cache lives."""

    def __init__(self) -> None:
        self._graphs = WeakKeyDictionary[Cache, tuple[CudaGraph, Hashable]]()

    def get(self, cache: Cache, fingerprint: Hashable) -> CudaGraph | None:
        """The graph of a cache, or None: if there is none, or if the model's `fingerprint` has changed since."""
        graph, captured = self._graphs.get(cache, (None, None))
        return graph if captured == fingerprint else None

    def capture(self, step: DecodeStep, tokens: Tensor, cache: Cache, fingerprint: Hashable) -> CudaGraph:
        """Capture a decode step over a static cache."""
        self._graphs.pop(cache, None)  # its memory is free before the next graph is captured
        graph = CudaGraph(step, tokens, cache.length)
        self._graphs[cache] = graph, fingerprint
        return graph


def can_replay(tokens: Tensor, cache: Cache) -> bool:
    """Whether a forward pass is a decode step that a graph may replay: one token on a GPU over a static cache, without
    gradients."""
    is_single_token = tokens.ndim == 2 and tokens.shape[1] == 1
    return is_single_token and tokens.is_cuda and cache.static and not torch.is_grad_enabled()
