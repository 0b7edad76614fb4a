"""What a model costs, as terms that a page only has to add up.

A model is a list of runs: what stands outside its layers, and each distinct attention and feed-forward with the number
of layers that have it. With `seen` = min(context, window), or context where there is no window,

    parameters                   sum of layers * each of params
    active parameters            sum of layers * active
    numbers in the cache         sum of layers * stored * seen, for each sequence
    FLOPs of one decoded token   sum of layers * (each of fixed + each of per_seen * seen)
    parameters read by a step    sum of layers * read[i], for BATCHES[i] sequences

Nothing here knows any block: the terms are taken from what each spec says of itself, and checked where they are taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from zoo.blocks import Layer
from zoo.costs import Breakdown, sum_breakdowns
from zoo.errors import CheckFailed
from zoo.model.decoder import Decoder
from zoo.registry import Block, Mixer

BATCHES = tuple(2**i for i in range(9))  # a mixture of experts reads more of its weights for each of them
PROBE = 99_991  # tokens of context at which the terms must add up to what the spec says


@dataclass(frozen=True)
class Run:
    """The terms of one layer's attention or feed-forward, norms included, or of what is outside the layers.

    `fixed` and `per_seen` are FLOPs by part; `stored` numbers are kept of each of the last `window` tokens (None: all).
    """

    params: Mapping[str, int]
    active: int
    read: tuple[float, ...]
    fixed: Mapping[str, int]
    per_seen: Mapping[str, int]
    stored: int = 0
    window: int | None = None

    def seen(self, context: int) -> int:
        """Tokens that the last of `context` tokens sees."""
        return context if self.window is None else min(context, self.window)

    def flops(self, context: int) -> int:
        """FLOPs of one layer for a token that sees `context` tokens, itself included."""
        return sum(self.fixed.values()) + sum(self.per_seen.values()) * self.seen(context)


Counted = tuple[tuple[int, Run], ...]  # (how many layers have it, its terms)


def runs(spec: Decoder) -> Counted:
    """The terms of a model. Raises CheckFailed where a block's FLOPs do not grow with the tokens that it sees."""
    layers = Counter(spec.layers)
    return ((1, outside(spec)), *attention(layers, spec.dim), *feed_forward(layers, spec.dim))


def attention(layers: Mapping[Layer, int], dim: int) -> Counted:
    """The runs of the attention branches of so many layers of each kind."""
    found = Counter[tuple[Block, Mixer]]()
    for layer, n in layers.items():
        found[layer.attn, layer.mixer] += n
    return tuple((n, _run(branch, dim, mixer)) for (branch, mixer), n in found.items())


def feed_forward(layers: Mapping[Layer, int], dim: int) -> Counted:
    """The runs of the feed-forward branches."""
    found = Counter[Block]()
    for layer, n in layers.items():
        found[layer.ffn] += n
    return tuple((n, _run(branch, dim)) for branch, n in found.items())


def outside(spec: Decoder) -> Run:
    """Embedding, last norm and head: the whole less its layers."""
    layers = Counter(spec.layers).items()
    params = _less(spec.param_breakdown(), ((n, layer.param_breakdown(spec.dim)) for layer, n in layers))
    # Whole numbers, but the layers' experts are read in expectation.
    read = (spec.read_params(b) - sum(n * layer.read_params(spec.dim, b) for layer, n in layers) for b in BATCHES)
    flops = _less(spec.flop_breakdown(0, 1), ((n, layer.flop_breakdown(spec.dim, 0, 1)) for layer, n in layers))
    return Run(params, sum(params.values()), tuple(map(round, read)), flops, {})


def plain(counted: Counted) -> list[dict[str, Any]]:
    """Runs as JSON holds them."""
    return [{"layers": n, **asdict(run)} for n, run in counted]


def _run(branch: Block, dim: int, mixer: Mixer | None = None) -> Run:
    params, one = _less(branch.param_breakdown(dim), ()), branch.flop_breakdown(dim, 0, 1)
    stored = mixer.cache_spec() if mixer else None
    more = _less(branch.flop_breakdown(dim, 1, 1), [(1, one)])  # what the second token costs more than the first
    run = Run(
        params=params,
        active=branch.active_params(dim),
        read=tuple(branch.read_params(dim, batch) for batch in BATCHES),
        fixed=_less(one, [(1, more)]),
        per_seen=more,
        stored=stored.elements() if stored else 0,
        window=stored.window if stored else None,
    )
    if run.flops(PROBE) != branch.flops(dim, PROBE - 1, 1) or sum(params.values()) != branch.params(dim):
        raise CheckFailed(f"{type(branch).__name__}: its costs are no sum of terms: {branch.describe()}")
    return run


def _less(parts: Breakdown, taken: Iterable[tuple[int, Breakdown]]) -> dict[str, int]:
    """Breakdown less others, those that nothing is left of left out."""
    left = sum_breakdowns([(1, parts), *((-n, each) for n, each in taken)])
    return {name: number for name, number in left.items() if number}
