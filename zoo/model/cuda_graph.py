"""One decode step on a GPU as a CUDA graph: a single launch for its hundreds of kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

WARMUP_STEPS = 3  # before the capture; they compile kernels and allocate workspaces


class CudaGraph:
    """A decode step, captured once and replayed for every later token.

    `step`: tokens (b, 1) and their position (1,) -> logits (b, 1, vocab). It may depend only on these and on memory
    with a fixed address: the weights, and a static cache. The warm-up steps write to the cache at `position`, and the
    first replay overwrites that place.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, position: int) -> None:
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
        """Returns the logits of the tokens at this position, in memory that the next replay does not overwrite."""
        self._tokens.copy_(tokens)
        self._position.fill_(position)
        self._graph.replay()
        return self._logits.clone()
