"""The options of a run: their defaults, the model and settings that they describe, and the options that may change on
resume."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from zoo.errors import MalformedError, UsageError
from zoo.model.decoder import Decoder
from zoo.swaps.grammar import apply_swaps
from zoo.swaps.scaled import resolved, scaled
from zoo.swaps.tiny import tiny
from zoo.training.loop import TrainingConfig
from zoo.units import parse_count

PUBLISHED = "published"  # value of `params` that keeps the published size
SMALL = 20_000_000  # models with fewer parameters get the high learning rate, whatever `params` is
BYTES = 256  # the vocabulary of a ByteTokenizer
# Options that may differ when a run is resumed: they change neither the model nor its losses.
CHANGEABLE = frozenset({"text", "compile", "checkpoint_activations", "eval_every", "sample"})


@dataclass(frozen=True)
class Options:
    """The options of a run.

    `name`, `params`, `tiny` and `swap` describe a model with fresh weights. Alternatively, `source` is a model from
    which training starts. `text` is a path (None: Python's standard library). `vocab` is the size of a BPE (None: the
    source's tokenizer, or bytes). Either `tokens` or `minutes` is the budget. `clip` is 0 for no limit. The other
    options are fields of TrainingConfig or explained by `python -m zoo.train --help`.
    """

    name: str | None = None
    params: str = "1M"
    tiny: bool = False
    swap: tuple[str, ...] = ()
    source: str | None = None
    text: str | None = None
    vocab: int | None = None
    context: int = 256
    batch: int = 8
    accumulate: int = 1
    tokens: int | None = None
    minutes: float | None = None
    lr: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.1
    clip: float = 1.0
    weight_decay: float = 0.1
    seed: int = 0
    autocast: bool = False
    compile: bool = False
    checkpoint_activations: bool = False
    eval_every: int | None = None
    sample: str | None = None

    @classmethod
    def fresh(cls, given: Mapping[str, Any]) -> Self:
        """Returns the options of a new run. Raises UsageError for options that contradict each other."""
        options = cls(**given)
        options._check(given)
        if options.tokens is None and options.minutes is None:
            options = replace(options, minutes=10.0)
        return options

    def with_rate(self, params: int) -> Self:
        """Returns options with a learning rate: the given one, or the default for a model of `params` parameters."""
        if self.lr is not None:
            return self
        large = self.params == PUBLISHED and not self.tiny and params >= SMALL
        return replace(self, lr=1e-4 if self.source else 3e-4 if large else 4e-3)

    @classmethod
    def resumed(cls, given: Mapping[str, Any], recorded: Any) -> Self:
        """Returns the options that a run `recorded`, updated by the `given` ones. Raises UsageError if a given option
        may not change, MalformedError if `recorded` is not from this version."""
        if not isinstance(recorded, dict) or set(recorded) != {field.name for field in fields(cls)}:
            raise MalformedError("the options in the checkpoint are not those of this version")
        earlier = {name: tuple(value) if isinstance(value, list) else value for name, value in recorded.items()}
        for name, value in given.items():
            if name not in CHANGEABLE and value != earlier[name]:
                option = {"name": "MODEL", "source": "--from"}.get(name, f"--{name.replace('_', '-')}")
                raise UsageError(f"{option} is {earlier[name]} in the run that is resumed, and {value} was given")
        return cls(**(earlier | dict(given)))

    def config(self, steps: int) -> TrainingConfig:
        """Returns the settings for training in this number of steps."""
        assert self.lr is not None
        names = (each.name for each in fields(TrainingConfig) if hasattr(self, each.name))
        values = {name: getattr(self, name) for name in names}
        return TrainingConfig(steps, self.lr, **(values | {"clip": self.clip or None}))

    def fresh_spec(self, full: Decoder) -> tuple[Decoder, list[str]]:
        """Returns the spec of a model with fresh weights, and the features that its swaps dropped. `full` is the spec
        of the model that the option `name` names.

        Only a published size keeps its vocabulary; other models get the tokenizer's. After a swap, a scaled model is
        scaled again to the same number of parameters. Raises UsageError for an impossible swap, SpecError for a swap
        that gives no valid model or for too few parameters.
        """
        vocab = self.vocab or BYTES
        if self.tiny:
            spec, dropped = apply_swaps(tiny(full), self.swap)
            return spec.with_vocab(vocab), dropped
        if self.params == PUBLISHED:
            return apply_swaps(full, self.swap)
        params = parse_count(self.params)
        small = scaled(full, params, vocab=vocab, context=self.context).spec
        spec, dropped = apply_swaps(small, self.swap)
        return (resolved(spec, params).spec if self.swap else small), dropped

    def _check(self, given: Mapping[str, Any]) -> None:
        if self.name is None and self.source is None:
            raise UsageError("which model? For example: python -m zoo.train qwen3 --out run; or --from SOURCE")
        if self.tokens is not None and self.minutes is not None:
            raise UsageError("give one budget: --tokens or --minutes")
        for name in ("tokens", "minutes"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise UsageError(f"--{name} must be above 0, got {value:g}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UsageError(f"--lr must be above 0, got {self.lr:g}")
        if not self.clip >= 0:
            raise UsageError(f"--clip must be at least 0 (0: no limit), got {self.clip:g}")
        shaping = [f"--{name}" for name in ("params", "tiny", "swap", "vocab") if given.get(name)]
        if self.source is not None and shaping:
            raise UsageError(f"the model is that of --from: leave {', '.join(shaping)} out")
        if self.tiny and "params" in given:
            raise UsageError("--tiny has toy widths: leave --params out")
