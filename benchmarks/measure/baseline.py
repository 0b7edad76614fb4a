"""The baseline: the transformers implementation of a model, measured beside the zoo's with the same weights.

It is measured with its default attention and, on request, compiled. Its results must first equal the zoo's.
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
from benchmarks.measure.runners import (
    BASELINE,
    COMPILED,
    TOLERANCE,
    Candidate,
    Runner,
    ThroughputConfig,
    Workload,
    inference,
    random_tokens,
)
from weights.reference.model import causal_class, quiet, transformers
from weights.saving import to_checkpoint
from zoo.errors import CheckFailed
from zoo.model.module import Model

CHECKED_TOKENS = 64  # tokens whose logits are compared


@dataclass(frozen=True)
class BaselineRunner(Runner):
    """A causal language model in transformers, with its dynamic cache, or `compiled` with its static cache."""

    compiled: Callable[..., Any] | None = None

    def new_cache(self, batch: int, tokens: int) -> Any:
        if self.compiled is None:
            return transformers().DynamicCache(config=self.model.config)
        return transformers().StaticCache(config=self.model.config, max_cache_len=tokens)

    def __call__(self, tokens: Tensor, cache: Any) -> Tensor:
        # Newer releases name this argument `cache` and warn about `past_key_values`.
        name = "cache" if "cache" in signature(self.model.forward).parameters else "past_key_values"
        call = self.model if self.compiled is None else self.compiled  # a compiled module has no truth value
        return call(input_ids=tokens, use_cache=True, logits_to_keep=1, **{name: cache}).logits

    def snapshot(self, cache: Any) -> Callable[[], Any]:
        """Returns a function that restores the cache; a static one in place, because compiled code may rely on it."""
        kept = copy.deepcopy(cache)
        return (lambda: copy.deepcopy(kept)) if self.compiled is None else (lambda: _restored(cache, kept))


def _restored(cache: Any, kept: Any) -> Any:
    """Restores `cache` to the state of its earlier copy `kept`, and returns it. Layers that were empty are reset."""
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


def baseline_candidates(benchmark_model: BenchmarkModel, model: Model, config: ThroughputConfig) -> Iterator[Candidate]:
    """Yields the baseline's candidates for inference (see `checked_candidates`)."""
    tokens = random_tokens(Workload("prefill", CHECKED_TOKENS), model.spec.vocab, config.seed, config.device)

    def runner_of(reference: Any, compiled: bool) -> BaselineRunner:
        return BaselineRunner(reference, torch.compile(reference) if compiled else None)

    def difference(runner: BaselineRunner) -> str | None:
        with inference(config.threads):
            if runner.compiled is None:
                logits, expected = runner.model(input_ids=tokens, use_cache=False).logits, model(tokens)
                return logits_difference(benchmark_model, logits, expected, config, "the zoo's")
            logits, expected = (_decoded(each, config.device) for each in (runner, BaselineRunner(runner.model)))
            return logits_difference(benchmark_model, logits, expected, config, "those of its eager mode")

    return checked_candidates(benchmark_model, model, config, runner_of, difference)


def checked_candidates(
    benchmark_model: BenchmarkModel,
    model: Model,
    config: ThroughputConfig,
    runner_of: Callable[[Any, bool], Any],
    difference: Callable[[Any], str | None],
) -> Iterator[Candidate]:
    """Yields candidates for the baseline: with its default attention and, if the config says so, compiled.

    `runner_of(model, compiled)` returns a runner of a transformers model. `difference(runner)` describes how its
    results differ from the expected ones; None if only rounding differs. A compiled model that fails or differs is left
    out, and a line on stderr says why. Raises CheckFailed if the model differs uncompiled, SpecError if transformers
    has no config for it.
    """
    reference = build_baseline(model, config.device)
    runner = runner_of(reference, False)
    if problem := difference(runner):
        raise CheckFailed(f"{benchmark_model.label}: in {BASELINE}, {problem}; nothing was measured")
    yield Candidate(benchmark_model, BASELINE, reference.config._attn_implementation, runner)
    if not config.baseline_compiled:
        return
    try:
        runner = runner_of(reference, True)
        problem = difference(runner)
    except Exception as error:  # any error of a compiler
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if problem:
        does = "train" if config.trains else "run"
        print(f"{BASELINE} does not {does} {benchmark_model.label} compiled: {problem}", file=sys.stderr)
    else:
        yield Candidate(benchmark_model, BASELINE, COMPILED, runner)


def build_baseline(model: Model, device: torch.device) -> Any:
    """Returns the transformers model with these weights. Weights with the same layout in both share memory."""
    fields, tensors = to_checkpoint(model)
    config = transformers().AutoConfig.for_model(**fields)
    kind = causal_class(config)
    with quiet():
        reference = kind.from_pretrained(None, config=config, state_dict=tensors, dtype=model.embed.weight.dtype)
    return reference.to(device).eval()


def logits_difference(
    benchmark_model: BenchmarkModel, logits: Tensor, expected: Tensor, config: ThroughputConfig, others: str
) -> str | None:
    """Describes how logits differ from the expected ones, named `others`; None if the difference may be rounding."""
    difference = (logits - expected).abs().max().item()
    bound = TOLERANCE[config.dtype] * expected.abs().max().item()
    if difference <= bound or not comparable(benchmark_model, config):  # a NaN differs, too
        return None
    return f"the logits differ by {difference:.1e} from {others}, above {bound:.1e}"


def comparable(benchmark_model: BenchmarkModel, config: ThroughputConfig) -> bool:
    """Whether two implementations must have equal results, up to rounding.

    A mixture of experts in 16 bits need not: rounding may decide a near tie in a router and change all later results.
    """
    return config.dtype.itemsize >= 4 or not any(layer.mixture for layer in benchmark_model.spec.layers)


def _decoded(runner: BaselineRunner, device: torch.device) -> Tensor:
    """Returns the last logits after a prefill of two tokens and two decoded tokens."""
    cache, tokens = runner.new_cache(1, 8), torch.arange(4, device=device)[None]
    *_, last = [runner(part, cache) for part in tokens.split([2, 1, 1], dim=1)]
    return last
