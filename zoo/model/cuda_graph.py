"""One decode step on a GPU as a CUDA graph: its hundreds of kernels are launched as one."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

WARMUPS = 3  # passes before the capture: kernels are compiled and workspaces allocated in them


class CudaGraph:
    """A step (tokens (b, 1), position (1,)) -> logits, captured once and replayed for every token after.

    The step may depend on nothing but these two tensors and what they lead to in memory that stays where it is: the
    weights, and a static cache. Passes before the capture write at `position`, where the step itself writes next.
    A graph is of one model: `fingerprint` says how it was and where its weights lay.
    """

    def __init__(
        self,
        step: Callable[[Tensor, Tensor], Tensor],
        tokens: Tensor,
        position: int,
        model: object,
        fingerprint: Hashable,
    ) -> None:
        self._model, self._fingerprint = weakref.ref(model), fingerprint
        self.tokens = tokens.clone()
        self.position = torch.full((1,), position, device=tokens.device)
        aside = torch.cuda.Stream(tokens.device)
        aside.wait_stream(torch.cuda.current_stream(tokens.device))
        with torch.cuda.stream(aside):
            for _ in range(WARMUPS):
                step(self.tokens, self.position)
        torch.cuda.current_stream(tokens.device).wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = step(self.tokens, self.position)

    def is_of(self, model: object, fingerprint: Hashable) -> bool:
        """Whether the graph is of this model, as it is now."""
        return self._model() is model and self._fingerprint == fingerprint

    def __call__(self, tokens: Tensor, position: int) -> Tensor:
        """Logits of the tokens at this position. They are the caller's: the next replay does not overwrite them."""
        self.tokens.copy_(tokens)
        self.position.fill_(position)
        self.graph.replay()
        return self.logits.clone()
