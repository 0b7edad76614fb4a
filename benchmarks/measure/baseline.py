"""The baseline: transformers' implementation of a model, with the same weights in memory, beside the zoo's.

It is measured with its default attention and, on request, compiled with a static cache. Before that, its logits must
equal the zoo's.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure.benchmark_models import BenchmarkModel
from benchmarks.measure.runners import BASELINE, COMPILED, TOLERANCE, Candidate, Runner, ThroughputConfig, inference
from weights.reference.model import causal_class, quiet, transformers
from weights.saving import to_checkpoint
from zoo.errors import CheckFailed
from zoo.model.module import Model

CHECKED_TOKENS = 64  # tokens whose logits are compared


@dataclass(frozen=True)
class BaselineRunner(Runner):
    """A causal language model of transformers, with its own dynamic cache. `compiled`: its form for a static cache."""

    compiled: Callable[..., Any] | None = None

    def new_cache(self, batch: int, tokens: int) -> Any:
        if self.compiled is None:
            return transformers().DynamicCache(config=self.model.config)
        return transformers().StaticCache(config=self.model.config, max_cache_len=tokens)

    def __call__(self, tokens: Tensor, cache: Any) -> Tensor:
        # Releases that accept `cache` warn about the older name.
        name = "cache" if "cache" in signature(self.model.forward).parameters else "past_key_values"
        call = self.model if self.compiled is None else self.compiled  # a compiled module has no truth value
        return call(input_ids=tokens, use_cache=True, logits_to_keep=1, **{name: cache}).logits

    def snapshot(self, cache: Any) -> Callable[[], Any]:
        """Returns a function that restores the cache: a static one in place, since compiled code may rely on it."""
        kept = copy.deepcopy(cache)
        return (lambda: copy.deepcopy(kept)) if self.compiled is None else (lambda: _restored(cache, kept))


def _restored(cache: Any, kept: Any) -> Any:
    """Restores `cache` to its state when `kept` was copied from it, and returns it. An empty cache is reset."""
    for layer, before in zip(cache.layers, kept.layers, strict=True):
        if not before.is_initialized:
            layer.reset()
            continue
        for name, value in vars(before).items():
            if isinstance(value, Tensor):
                getattr(layer, name).copy_(value)
            else:
                setattr(layer, name, value)
    return cache


def baseline_candidates(
    benchmark_model: BenchmarkModel, model: Model, config: ThroughputConfig, with_compiled: bool
) -> Iterator[Candidate]:
    """Yields the baseline's candidates. If it does not run compiled, a line on stderr says why.

    Raises CheckFailed unless the logits are equal, SpecError for a model that no config of transformers describes.
    """
    reference = build_baseline(model, config.device)
    check_logits(benchmark_model, model, reference, config)
    eager = BaselineRunner(reference)
    yield Candidate(benchmark_model, BASELINE, reference.config._attn_implementation, eager)
    if with_compiled:
        compiled = BaselineRunner(reference, torch.compile(reference))
        if problem := _problem(compiled, eager, config):
            print(f"{BASELINE} does not run {benchmark_model.label} compiled: {problem}", file=sys.stderr)
        else:
            yield Candidate(benchmark_model, BASELINE, COMPILED, compiled)


def build_baseline(model: Model, device: torch.device) -> Any:
    """Returns the model in transformers. Weights with the same layout in both share memory."""
    fields, tensors = to_checkpoint(model)
    config = transformers().AutoConfig.for_model(**fields)
    kind = causal_class(config)
    with quiet():
        reference = kind.from_pretrained(None, config=config, state_dict=tensors, dtype=model.embed.weight.dtype)
    return reference.to(device).eval()


def check_logits(benchmark_model: BenchmarkModel, model: Model, reference: Any, config: ThroughputConfig) -> None:
    """Raises CheckFailed unless both compute the same logits, up to rounding."""
    generator = torch.Generator().manual_seed(config.seed)
    tokens = torch.randint(model.spec.vocab, (1, CHECKED_TOKENS), generator=generator).to(config.device)
    with inference(config.threads):
        expected, logits = model(tokens), reference(input_ids=tokens, use_cache=False).logits
    require_equal_logits(benchmark_model, logits, expected, config, BASELINE, "the zoo's")


def require_equal_logits(
    benchmark_model: BenchmarkModel, logits: Tensor, expected: Tensor, config: ThroughputConfig, whose: str, others: str
) -> None:
    """Raises CheckFailed unless logits are the expected ones, up to rounding.

    A mixture of experts in 16 bits is not checked: rounding may decide a near tie in a router, and the rest then
    differs.
    """
    difference, bound = _difference(logits, expected, config.dtype)
    judged = config.dtype.itemsize >= 4 or not any(layer.mixture for layer in benchmark_model.spec.layers)
    if judged and not difference <= bound:  # a NaN fails, too
        apart = f"differ by {difference:.1e} from {others}, above {bound:.1e}"
        raise CheckFailed(f"{benchmark_model.label}: the logits of {whose} {apart}; nothing was measured")


def _difference(logits: Tensor, expected: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Returns the largest difference, and a bound that rounding in this dtype does not exceed."""
    bound = TOLERANCE[dtype] * expected.abs().max().item()
    return (logits - expected).abs().max().item(), bound


def _problem(runner: BaselineRunner, eager: BaselineRunner, config: ThroughputConfig) -> str | None:
    """Returns, in a line, why the runner does not run or computes something else than `eager`; None if both agree."""
    try:
        with inference(config.threads):
            logits, expected = (_decoded(each, config.device) for each in (runner, eager))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    difference, bound = _difference(logits, expected, config.dtype)
    return None if difference <= bound else f"its logits differ by {difference:.1e}"


def _decoded(runner: BaselineRunner, device: torch.device) -> Tensor:
    """Returns the last logits after a prefill of two tokens and two decoded tokens."""
    cache, tokens = runner.new_cache(1, 8), torch.arange(4, device=device)[None]
    *_, last = [runner(part, cache) for part in tokens.split([2, 1, 1], dim=1)]
    return last
