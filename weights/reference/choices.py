"""What the routers and indexers of a model choose: experts, and the tokens or entries that attention sees.

Where two scores are nearly equal a rounding error chooses otherwise, and all that follows differs. So choices are
recorded and compared by themselves: where two runs agree, and whether rounding explains where they do not.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import inf
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zoo.blocks import EntryIndexer, Indexer
from zoo.blocks.routers import GroupedTopK, LinearRouter, Router
from zoo.core.indexing import NOT_CHOSEN, Index, choose_keys, complete, index_scores

Choices = dict[nn.Module, list[Tensor]]  # what chooses -> the chosen ids (b, t, k) of each forward pass, ascending
See = Callable[[nn.Module, tuple[Any, ...], Any, Tensor], None]  # what chooses, its arguments and result, the ids


@contextmanager
def removed_after(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Register hooks now, and remove them in the end."""
    with ExitStack() as registered:
        for hook in hooks:
            registered.enter_context(hook)
        yield


@contextmanager
def recorded_choices(module: nn.Module, see: See | None = None) -> Iterator[Choices]:
    """What each of the zoo's routers and indexers in a module chooses meanwhile."""
    choosing = [
        part for part in module.modules() if isinstance(getattr(part, "spec", None), Router | Indexer | EntryIndexer)
    ]
    choices: Choices = {part: [] for part in choosing}

    def record(part: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        choices[part].append(_chosen(part, args, out))
        if see is not None:
            see(part, args, out, choices[part][-1])

    with removed_after(part.register_forward_hook(record) for part in choosing):
        yield choices


def gathered(choices: Choices) -> list[Tensor]:
    """The choices of each module over all its forward passes: (b, t, k)."""
    return [torch.cat(passes, dim=1) for passes in choices.values()]


def agreement(one: Sequence[Tensor], other: Sequence[Tensor], shape: tuple[int, int]) -> tuple[Tensor, int]:
    """Two runs' choices, layer by layer -> (batch, t) whether they agree up to there, and how many choices differ. A
    token with another choice changes that token and every later one of its row in what follows: these need not be
    equal, and their choices are not counted again."""
    agree, differing = torch.ones(shape, dtype=torch.bool), 0
    for first, second in zip(one, other, strict=True):
        differ = (first != second).any(-1) & agree
        differing += int(differ.sum())
        agree &= ~differ.cummax(-1).values
    return agree, differing


def ties(part: nn.Module, args: tuple[Any, ...], out: Any, chosen: Tensor, reference: Tensor, bound: float) -> Tensor:
    """Where a router or an indexer has `chosen` other ids than the `reference` (b, t, k) and rounding explains that,
    (b, t): its scores may be off by `bound` times the largest.

    A router's last choice then leads the next by no more. Of an indexer, which has many nearly equal scores, both chose
    as many, of what the token sees, and no choice of the reference is further below its own last one.
    """
    differ = (chosen != reference).any(-1)
    if not isinstance(out, Index):
        lead = _margin(part, args[0]) if isinstance(part.spec, Router) else torch.full(differ.shape, inf)
        return differ & (lead <= bound)
    scores = index_scores(out.queries, out.weights, out.keys[:, 0])
    seen = complete(args[2].positions, scores.shape[-1], cast(Any, part).every)
    largest = scores.masked_fill(~seen, 0).abs().amax(-1)
    own, others = (_lowest(scores.masked_fill(~seen, -inf), ids.long()) for ids in (chosen, reference))
    as_many = (chosen == NOT_CHOSEN).sum(-1) == (reference == NOT_CHOSEN).sum(-1)
    return differ & as_many & (own - others <= bound * largest)


def of_reference(ids: Tensor, batch: int, spec: Any) -> Tensor:
    """What the reference chose -> (b, t, k), ascending: experts (n, k), or an indexer's tokens or entries (b, t, at
    most k). Those that are ahead of a token, where it sees fewer than k, become NOT_CHOSEN."""
    if isinstance(spec, Router):
        return ids.unflatten(0, (batch, -1)).sort(-1).values
    position = torch.arange(ids.shape[1], device=ids.device)[:, None]
    ids = ids.to(torch.int32).masked_fill(ids > position, NOT_CHOSEN)
    return F.pad(ids, (0, spec.k - ids.shape[-1]), value=NOT_CHOSEN).sort(-1).values


def _chosen(part: nn.Module, args: tuple[Any, ...], out: Any) -> Tensor:
    """The ids that a router or an indexer chose, (b, t, k), ascending."""
    if isinstance(part.spec, Router):
        return cast(Tensor, out[1]).sort(-1).values
    x, ctx, module, k = args[0], args[2], cast(Any, part), cast(Any, part.spec).k
    if out is not None:
        return choose_keys(out, int(ctx.positions[0]), module.every).sort(-1).values
    places = torch.arange(k, dtype=torch.int32, device=x.device)  # all that a token sees, which are k at most
    return places.where(complete(ctx.positions, k, module.every), NOT_CHOSEN).sort(-1).values.expand(len(x), -1, -1)


def _lowest(scores: Tensor, ids: Tensor) -> Tensor:
    """scores (b, t, s), ids (b, t, k) -> (b, t) the lowest score of a chosen one."""
    return scores.gather(-1, ids.clamp_min(0)).masked_fill(ids == NOT_CHOSEN, inf).amin(-1)


def _margin(router: nn.Module, x: Tensor) -> Tensor:
    """x (b, t, dim) -> (b, t) the lead of the last chosen expert, or group of experts, over the first that is not
    chosen, relative to the largest score. Infinite where the choice follows from no scores, by the token's id or by a
    router of an unknown kind: no choice of it counts as a tie."""
    spec: Any = router.spec
    if not isinstance(router, LinearRouter) or spec.reads_tokens:
        return torch.full_like(x[..., 0], inf)
    scores = router.ranking(router.logits(x))
    if not isinstance(spec, GroupedTopK):
        return _lead(scores, spec.k) / scores.abs().amax(-1)
    grouped = scores.unflatten(-1, (spec.groups, -1))
    best = grouped.topk(2).values.sum(-1)
    kept = grouped.masked_fill((best < best.topk(spec.keep).values[..., -1:])[..., None], -inf)
    lead = torch.minimum(_lead(kept.flatten(-2), spec.k), _lead(best, spec.keep))
    return lead / scores.abs().amax(-1)


def _lead(scores: Tensor, k: int) -> Tensor:
    """(b, t, scores) -> (b, t) the k-th largest minus the next, infinite where there is no next."""
    if k == scores.shape[-1]:
        return torch.full_like(scores[..., 0], inf)
    top = scores.topk(k + 1).values
    return top[..., k - 1] - top[..., k]
