"""Generation: the choice of each next token, greedy or sampled, and the published settings of a model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.core.cache import Cache
from zoo.errors import UsageError


@dataclass(frozen=True)
class GenerationConfig:
    """The published settings of a model: the ids of the tokens that end a text (`stop`), and how to sample.

    By default, generation stops at `stop` and does not sample. To sample with these settings: `model.generate(tokens,
    64, **model.generation.sampling)`. Temperature 0 means that the publisher recommends no sampling.
    """

    stop: tuple[int, ...] = ()
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """The arguments of `Model.generate` that sample with these settings."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


class Sampler:
    """Takes the most likely token at temperature 0, else samples softmax(logits / temperature) within `top_k`, `top_p`.

    `top_k` keeps the k most likely tokens. Then `top_p` keeps the smallest set of most likely tokens with a total
    probability of at least `top_p` (nucleus sampling, Holtzman et al. 2019). Among equally likely tokens, which are
    common in bfloat16, the lower id comes first. `seed` makes the samples repeatable and independent of other random
    numbers in the process. Raises UsageError for options out of range.
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
        scores = (scores - scores[:, :1]) / self.temperature  # the highest score becomes 0, so that no score overflows
        if self.top_k is not None:
            scores, ids = scores[:, : self.top_k], ids[:, : self.top_k]
        probabilities = scores.softmax(-1)
        if self.top_p is not None:
            before = probabilities.cumsum(-1) - probabilities
            before[:, 0] = -1.0  # keeps the most likely token, however small top_p is
            probabilities = probabilities.masked_fill(before >= self.top_p, 0.0)
        sampled = torch.multinomial(probabilities, 1, generator=self.generator)
        return ids.gather(-1, sampled).squeeze(-1)


@torch.no_grad()
def continued(
    model: Any,
    tokens: Tensor | None,
    inputs_embeds: Tensor | None,
    cache: Cache,
    max_new_tokens: int,
    sampler: Sampler,
    stop_ids: Tensor,
) -> Iterator[Tensor]:
    """Yields the token ids (batch,) of each step after a prompt: the iteration of `Model.stream`. The prompt consists
    of token ids (batch, t) or embeddings (batch, t, dim)."""
    last = torch.zeros(cache.batch, dtype=torch.long, device=stop_ids.device)
    done = torch.zeros_like(last, dtype=torch.bool)
    new, embeds = tokens, inputs_embeds
    for _ in range(max_new_tokens):
        if new is not None and cache.crossed_switch(new.shape[1]) is not None:
            cache.truncate(0)
            new, embeds = tokens, inputs_embeds
        sampled = sampler(model(new, cache, 1, embeds)[:, -1])
        last = torch.where(done, last, sampled)
        yield last
        done = torch.isin(last, stop_ids)  # a stopped row repeats its stop token, so it stays stopped
        if len(stop_ids) and done.all():
            return
        new, embeds = last[:, None], None
        if cache.switches:  # extends the prompt: a cache that is recomputed needs the whole sequence
            tokens = None if tokens is None else torch.cat([tokens, new], dim=1)
            inputs_embeds = None if inputs_embeds is None else torch.cat([inputs_embeds, model.embed(new)], dim=1)
