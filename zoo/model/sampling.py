"""Sampling the next token from logits."""

import torch
from torch import Tensor

from zoo.errors import UsageError


class Sampler:
    """Takes the most likely token at temperature 0, else samples softmax(logits / temperature) within `top_k`, `top_p`.

    `top_k` keeps the k most likely tokens. Then `top_p` keeps the smallest set of most likely tokens with a total
    probability of at least `top_p` (nucleus sampling, Holtzman et al. 2019). Of equally likely tokens, which are
    common in bfloat16, the lower id comes first. `seed` makes the samples repeatable, independent of other randomness
    in the process. Raises UsageError for options out of range.
    """

    def __init__(
        self, temperature: float, top_k: int | None, top_p: float | None, seed: int | None, device: torch.device
    ) -> None:
        for holds, message in (
            (temperature >= 0, f"temperature {temperature} is below 0"),
            (top_k is None or top_k >= 1, f"top_k {top_k} is below 1"),
            (top_p is None or 0 < top_p <= 1, f"top_p {top_p} is not in (0, 1]"),
        ):
            if not holds:
                raise UsageError(message)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.generator = None if seed is None else torch.Generator(device).manual_seed(seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits (batch, vocab) -> token ids (batch,)."""
        if self.temperature < torch.finfo(torch.float32).tiny:
            return logits.argmax(-1)
        scores, ids = logits.float().sort(dim=-1, descending=True, stable=True)
        scores = (scores - scores[:, :1]) / self.temperature  # the most likely score becomes 0, so that none overflows
        if self.top_k is not None:
            scores, ids = scores[:, : self.top_k], ids[:, : self.top_k]
        probabilities = scores.softmax(-1)
        if self.top_p is not None:
            before = probabilities.cumsum(-1) - probabilities
            before[:, 0] = -1.0  # keeps the most likely token, however small top_p is
            probabilities = probabilities.masked_fill(before >= self.top_p, 0.0)
        sampled = torch.multinomial(probabilities, 1, generator=self.generator)
        return ids.gather(-1, sampled).squeeze(-1)
