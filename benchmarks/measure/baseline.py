"""The implementation that transformers has of a model, with the same weights in memory, as an entrant beside the zoo's.

It is measured in the attention that it takes by itself, and on request compiled, with a cache of fixed size. Before
that, its logits must be the zoo's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure.benchmark_models import Subject
from benchmarks.measure.throughput import COMPILED, Entrant, Setting, threads
from weights.reference.model import quiet
from weights.saving import to_checkpoint
from zoo.blocks import MoE
from zoo.cli.self_check import TOLERANCE
from zoo.errors import CheckFailed, require_package
from zoo.model.decoder import Model

PEER = "transformers"
TOKENS = 64  # whose logits are compared


@dataclass(frozen=True)
class PeerRunner:
    """A causal language model of transformers, with the cache that it makes itself or with one of fixed size."""

    model: Any
    static: bool = False
    call: Callable[..., Any] | None = None  # the model, compiled

    def new_cache(self, batch: int, tokens: int) -> Any:
        transformers = require_package("transformers", "parity")
        if self.static:
            return transformers.StaticCache(config=self.model.config, max_cache_len=tokens)
        return transformers.DynamicCache(config=self.model.config)

    def __call__(self, tokens: Tensor, cache: Any) -> object:
        call = self.model if self.call is None else self.call
        return call(input_ids=tokens, use_cache=True, logits_to_keep=1, **{_cache_word(self.model): cache}).logits

    def keep(self, cache: Any) -> Callable[[], Any]:
        """A cache of fixed size keeps its place in memory, which compiled code may rely on."""
        kept = copy.deepcopy(cache)
        return (lambda: _restored(cache, kept)) if self.static else (lambda: copy.deepcopy(kept))

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.model.parameters())


def _cache_word(model: Any) -> str:
    """What the model calls its cache: some releases warn of the word that others know."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def _restored(cache: Any, kept: Any) -> Any:
    """`cache` as it was when `kept` was copied from it; an empty one is emptied."""
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


def peers(subject: Subject, model: Model, setting: Setting, with_compiled: bool) -> Iterator[Entrant | str]:
    """The peer's entrants, or why there is none in some mode, in a line.

    Raises CheckFailed unless the logits are equal, SpecError for a model that no config of transformers says.
    """
    theirs = load(model, setting.device)
    check_logits(subject, model, theirs, setting)
    yield Entrant(subject, PEER, theirs.config._attn_implementation, PeerRunner(theirs))
    if with_compiled:
        runner = PeerRunner(theirs, static=True, call=torch.compile(theirs))
        why = _why_not(runner, PeerRunner(theirs), setting)
        yield (
            f"{PEER} does not run {subject.label} compiled: {why}" if why else Entrant(subject, PEER, COMPILED, runner)
        )


def load(model: Model, device: torch.device) -> Any:
    """The peer's model. Weights that both hold in the same form are the same memory."""
    transformers = require_package("transformers", "parity")
    words, tensors = to_checkpoint(model)
    config = transformers.AutoConfig.for_model(**words)
    kind = transformers.AutoModelForCausalLM._model_mapping[type(config)]
    with quiet():
        theirs: nn.Module = kind.from_pretrained(
            None, config=config, state_dict=tensors, dtype=model.embed.weight.dtype
        )
    return theirs.to(device).eval()


def check_logits(subject: Subject, model: Model, theirs: Any, setting: Setting) -> None:
    """Raise CheckFailed unless both compute the same logits, up to rounding.

    In 16 bits a router's near tie may go either way, and then the rest differs rightly: that is not judged.
    """
    generator = torch.Generator().manual_seed(setting.seed)
    tokens = torch.randint(model.spec.vocab, (1, TOKENS), generator=generator).to(setting.device)
    with threads(setting.threads):
        ours, other = model(tokens), theirs(input_ids=tokens, use_cache=False).logits
    apart, bound = (ours - other).abs().max().item(), TOLERANCE[setting.dtype] * max(1.0, ours.abs().max().item())
    judged = setting.dtype.itemsize >= 4 or not any(isinstance(part, MoE) for part in model.spec.walk())
    if judged and not apart <= bound:  # a NaN is a failure, too
        raise CheckFailed(
            f"{subject.label}: the logits of {PEER} differ by {apart:.1e} from the zoo's, above {bound:.1e}; nothing "
            "was measured"
        )


def _why_not(runner: PeerRunner, plain: PeerRunner, setting: Setting) -> str | None:
    """Why it does not run, or not as the `plain` one does, in a line; None if all is well."""
    try:
        with threads(setting.threads):
            ours, theirs = (_steps(each, setting.device) for each in (runner, plain))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    apart, bound = (ours - theirs).abs().max().item(), TOLERANCE[setting.dtype] * max(1.0, theirs.abs().max().item())
    return None if apart <= bound else f"its logits differ by {apart:.1e}"


def _steps(runner: PeerRunner, device: torch.device) -> Tensor:
    """The logits after a short prompt and two tokens."""
    cache, tokens = runner.new_cache(1, 8), torch.arange(4, device=device)[None]
    *_, last = [runner(part, cache) for part in tokens.split([2, 1, 1], dim=1)]
    assert isinstance(last, Tensor)
    return last
