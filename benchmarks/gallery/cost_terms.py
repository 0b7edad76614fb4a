"""Costs of a model as terms, so that the page only has to add them up.

Terms are pairs (number of layers, CostTerms): one for everything outside the branches of layers, one for each distinct
attention branch and one for each distinct feed-forward branch.

The formulas use kept = min(context, limit), or context without a limit;
visible = the number of tokens that the last token sees (zoo.costs.seen_tokens) / every, rounded down;
grown = entry + flops * visible, or 0 for a context of at most start.

    parameters                         sum of layers * each of params
    active parameters                  sum of layers * active_params
    cache elements of one sequence     sum of layers * (cache_elements * kept + state_elements), and for each of
                                       entries elements * context / every, rounded up
    and bytes beside them in float32   sum of layers * state_float32_bytes
    FLOPs of one decoded token         sum of layers * (each of fixed_flops + each of growing_flops' grown)
    parameters read by a decode step   sum of layers * read_params[i], for BATCHES[i] sequences

If several cards hold the model, the terms describe one card, and `sent_terms` the data that this card sends.
The terms are derived from the costs that every spec reports, and are checked against these costs.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.weight_forms import WeightForm
from zoo.blocks import Layer
from zoo.costs import Breakdown, CacheSpec, Full, seen_tokens, sum_breakdowns
from zoo.errors import CheckFailed, SpecError
from zoo.model.decoder import Decoder
from zoo.registry import Block, FlopGrowth, Mixer

BATCHES = tuple(2**i for i in range(9))  # a mixture of experts reads more of its weights at each larger batch
CHECK_CONTEXT = 99_991  # tokens of context at which the terms must add up to the spec's FLOPs
NO_CACHE = CacheSpec()


@dataclass(frozen=True)
class GrowingFlops:
    """FLOPs that grow with the tokens that the last token sees. `period`, `limit`, `stride`: those of a Reach.

    `flops` are spent for each visible token or, with `every` above 1, for each complete block of `every` tokens. They
    and `entry` FLOPs are spent only in contexts of more than `start` tokens.
    """

    flops: int
    period: int | None
    limit: int | None
    stride: int
    start: int = 0
    entry: int = 0
    every: int = 1

    def grown(self, context: int) -> int:
        """Returns the FLOPs for the last of `context` tokens, which also sees itself."""
        visible = seen_tokens(context, self.period, self.limit, self.stride) // self.every
        return self.entry + self.flops * visible if context > self.start else 0


@dataclass(frozen=True)
class CostTerms:
    """Terms of one layer's attention or feed-forward branch, norms included, or of everything outside these branches.

    FLOPs are by part. `cache_elements` are stored for each of the last `limit` tokens (None: for all tokens). For each
    (elements, every) in `entries`, `elements` more are stored for each block of `every` tokens.
    """

    params: Mapping[str, int]
    active_params: int
    read_params: tuple[float, ...]
    fixed_flops: Mapping[str, int]
    growing_flops: Mapping[str, GrowingFlops]
    cache_elements: int = 0
    limit: int | None = None
    state_elements: int = 0
    state_float32_bytes: int = 0
    entries: tuple[tuple[int, int], ...] = ()

    def elements(self, context: int) -> int:
        """Returns the number of cache elements after `context` tokens."""
        kept = context if self.limit is None else min(context, self.limit)
        entries = sum(elements * -(-context // every) for elements, every in self.entries)
        return self.cache_elements * kept + entries + self.state_elements

    def flops(self, context: int) -> int:
        """Returns the FLOPs of one layer for a token at the end of `context` tokens, itself included."""
        return sum(self.fixed_flops.values()) + sum(part.grown(context) for part in self.growing_flops.values())


Terms = tuple[tuple[int, CostTerms], ...]


def model_terms(spec: Decoder) -> Terms:
    """Returns the terms of a model. Raises CheckFailed if a block's FLOPs are not linear in the visible tokens."""
    layers = Counter(spec.layers)
    parts = attention_terms(layers, spec.dim), feed_forward_terms(layers, spec.dim)
    return ((1, outside_terms(spec)), *parts[0], *parts[1])


def stored_bytes(spec: Decoder, form: WeightForm) -> list[int]:
    """Returns the bytes of one layer's weights in a form, for each term of `model_terms`, in the same order."""
    attn = dict.fromkeys((layer.attn, layer.cache_spec()) for layer in spec.layers if layer.attn)
    ffn = dict.fromkeys(layer.ffn for layer in spec.layers if layer.ffn)
    branches: list[Block] = [*(branch for branch, _ in attn), *ffn]
    outside = sum(outside_terms(spec).params.values())
    return [form.params_bytes(outside), *(form.branch_bytes(branch, spec.dim) for branch in branches)]


def card_part(spec: Decoder, cards: int) -> tuple[InferenceConfig, Decoder | None]:
    """Returns the config that divides a model over `cards` cards, and the first card's shard (None: not divisible).

    Each card holds whole experts or, if the number of experts is not divisible, a part of each expert.
    """
    for ep in (cards, 1):
        config = InferenceConfig(tp=cards, ep=ep)
        with suppress(SpecError):
            return config, config.part(spec)
    return config, None


def sent_terms(spec: Decoder, config: InferenceConfig) -> dict[str, float]:
    """Returns the terms of the data that one card sends to the others in a decode step.

    Each sequence adds `elements` of the activations' dtype and `float32_bytes`. `step_bytes` do not depend on the
    number of sequences.
    """
    divided, cards = config.divided(spec), config.tp
    exchanges = [*divided.exchanges(spec.dim, cards), divided.head_exchange(cards)]
    by_token = [each for each in exchanges if each.for_each == "token"]
    return {
        "elements": sum(each.sent(1, 1, cards) for each in by_token if not each.in_float32),
        "float32_bytes": sum(each.sent(1, 1, cards) for each in by_token if each.in_float32),
        "step_bytes": sum(each.sent(1, 1, cards) for each in exchanges if each.for_each == "pass"),
    }


def attention_terms(layers: Mapping[Layer, int], dim: int) -> Terms:
    """Returns the terms of the attention branches, given the number of layers of each kind."""
    return _terms((((layer.attn, layer.cache_spec()), n) for layer, n in layers.items() if layer.attn), dim)


def feed_forward_terms(layers: Mapping[Layer, int], dim: int) -> Terms:
    """Returns the terms of the feed-forward branches, given the number of layers of each kind."""
    return _terms((((layer.ffn, NO_CACHE), n) for layer, n in layers.items() if layer.ffn), dim)


def outside_terms(spec: Decoder) -> CostTerms:
    """Returns the terms of everything outside the attention and feed-forward branches.

    This covers the embedding, the final norm, the head and, in the layers, per-layer inputs and scales of the output.
    """
    both = (branch for layer in spec.layers for branch in (layer.attn, layer.ffn) if branch)
    dim, branches = spec.dim, Counter(both).items()
    params = _sum([(1, spec.param_breakdown()), *((-n, branch.param_breakdown(dim)) for branch, n in branches)])
    flops = _sum([(1, spec.flop_breakdown(0, 1)), *((-n, branch.flop_breakdown(dim, 0, 1)) for branch, n in branches)])
    # Rounded to integers: both terms are floats, because the branches' numbers are expectations over experts.
    read = (spec.read_params(b) - sum(n * branch.read_params(dim, b) for branch, n in branches) for b in BATCHES)
    return CostTerms(params, sum(params.values()), tuple(map(round, read)), flops, {})


def _terms(branches: Iterable[tuple[tuple[Block, CacheSpec], int]], dim: int) -> Terms:
    counts = Counter[tuple[Block, CacheSpec]]()
    for branch, n in branches:
        counts[branch] += n
    return tuple((n, _branch_terms(*branch, dim)) for branch, n in counts.items())


def _branch_terms(branch: Block, cache: CacheSpec, dim: int) -> CostTerms:
    first = branch.flop_breakdown(dim, 0, 1)
    growing = {part: growth for part in first if (growth := _growth(branch, part, dim)).flops}
    terms = CostTerms(
        params=_sum([(1, branch.param_breakdown(dim))]),
        active_params=branch.active_params(dim),
        read_params=tuple(branch.read_params(dim, batch) for batch in BATCHES),
        fixed_flops=_sum([(1, first), (-1, {part: growth.grown(1) for part, growth in growing.items()})]),
        growing_flops=growing,
        cache_elements=cache.elements(),
        limit=cache.reach.limit,
        state_elements=int(cache.state_bytes(1) - cache.state_bytes(0)),
        state_float32_bytes=int(cache.state_bytes(0)),
        entries=tuple((each.elements, each.every) for each in cache.entries),
    )
    flops = branch.flops(dim, CHECK_CONTEXT - 1, 1)
    if terms.flops(CHECK_CONTEXT) != flops or sum(terms.params.values()) != branch.params(dim):
        raise CheckFailed(f"{type(branch).__name__}: its costs are not a sum of terms: {branch.describe()}")
    return terms


def _growth(branch: Block, part: str, dim: int) -> GrowingFlops:
    """Returns the growth of a part's FLOPs, from the FLOPs of the first token and of two tokens one step apart."""
    mixer = next((each for each in branch.walk() if isinstance(each, Mixer)), None)
    reach, start, every = mixer.flop_growth(part) if mixer else FlopGrowth(Full())
    step = every * reach.stride
    fixed, first, second = (branch.flop_breakdown(dim, past, 1)[part] for past in (0, start, start + step))
    entry = first - fixed - (second - first) * ((start + 1) // every) if start else 0
    return GrowingFlops(second - first, reach.period, reach.limit, reach.stride, start, entry, every)


def _sum(counted: Iterable[tuple[int, Breakdown]]) -> dict[str, int]:
    """Returns the sum of breakdowns, without the parts that sum to 0."""
    return {name: number for name, number in sum_breakdowns(counted).items() if number}
