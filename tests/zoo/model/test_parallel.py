"""Several ranks that hold a model together compute what one process does: logits, cached decode, losses, gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import zoo
from tests.exact import BOUND, differing_gradients, largest_difference
from tests.models import one_layer_of_each, randomised, tokens_of
from tests.presets import distinct, features, representatives
from tests.ranks import in_ranks
from zoo.core.collectives import Group
from zoo.core.processes import sums
from zoo.model.module import Model
from zoo.model.parallel import ParallelModel, Ranks, build_part, divide, summing
from zoo.sharding import Cut, FirstRankOnly, Rank, cut_of

LENGTH, CHUNK = 40, 13
VOCAB = 509  # which no number of ranks divides
OPERATORS = {
    "all_reduce": "all-reduce",
    "all_gather_into_tensor": "all-gather",
    "all_to_all_single": "all-to-all",
}
Bytes = dict[str, int]


def world() -> Group:
    return Group.of(dist.group.WORLD)


def both(name: str, ep: bool = False) -> tuple[Model, ParallelModel, Tensor]:
    """A model with one layer of each kind, this rank's part of it, with whole experts if `ep`, and tokens
    (2, LENGTH)."""
    model = randomised(one_layer_of_each(zoo.spec(name, tiny=True)).with_vocab(VOCAB))
    return model, divide(model, world(), ep), tokens_of(model.spec, 2, LENGTH)


@torch.no_grad()
def on_cards(device: torch.device, name: str, ep: bool) -> float:
    """How far this card's logits are from those of a card that holds the whole model."""
    model = randomised(zoo.spec(name, tiny=True)).to(device)
    part, tokens = divide(model, world(), ep), tokens_of(model.spec, 2, LENGTH).to(device)
    if not ep:
        part.compile()
    expected, cache = model(tokens), part.new_cache(2, LENGTH)
    passes = [part(tokens[:, start:end], cache) for start, end in pairwise([0, CHUNK, LENGTH - 2, LENGTH - 1, LENGTH])]
    return largest_difference(torch.cat(passes, dim=1), expected)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("ep", [False, True])
@pytest.mark.parametrize("name", representatives())
def test_two_cards_compute_the_logits_of_one(name: str, ep: bool) -> None:
    """Over nccl, compiled where ranks divide each expert: single tokens are replayed as CUDA graphs."""
    assert max(in_ranks(2, on_cards, name, ep, device="cuda")) <= BOUND


def mixtures(names: Iterable[str]) -> list[str]:
    """Few of these presets, which together show all that their mixtures of experts show."""
    shown = {}
    for name in names:
        kinds = {type(part) for part in zoo.spec(name, tiny=True).walk() if isinstance(part, zoo.MoE | zoo.Router)}
        shown[name] = {feature for feature in features(name) if feature[0] in {kind.__name__ for kind in kinds}}
    for name in sorted(shown, key=lambda name: len(zoo.spec(name, tiny=True).layers), reverse=True):
        others = set().union(*(each for other, each in shown.items() if other != name))
        if shown[name] <= others:
            del shown[name]
    return list(shown)


class Found(NamedTuple):
    """How far a rank's logits of a whole pass and of cached passes are from one process's; the gradients that differ by
    more than the bound, and by how much; the bytes of each kind of collective in a pass, over all ranks, and their
    number, each measured and by formula."""

    logits: tuple[float, float]
    gradients: dict[str, float]
    nbytes: tuple[Bytes, Bytes]
    count: tuple[int, int]


def compare(device: torch.device, names: list[str], ep: bool) -> dict[str, Found]:
    """Each model with one process's. Its gradients are those of the logits that are compared."""
    found = {}
    for name in names:
        model, part, tokens = both(name, ep)
        expected, whole = model(tokens), part(tokens)
        distances = largest_difference(whole, expected), largest_difference(in_passes(part, tokens), expected)
        far = far_gradients(part, gradients_of(part, whole, tokens), gradients_of(model, expected, tokens))
        found[name] = Found(distances, far, *exchanged(part.float(), tokens))
    return found


@torch.no_grad()
def in_passes(part: ParallelModel, tokens: Tensor) -> Tensor:
    """Logits of passes over a cache."""
    cache = part.new_cache(2, LENGTH)
    ends = [0, CHUNK, CHUNK + 1, CHUNK + 2, LENGTH]
    return torch.cat([part(tokens[:, start:end], cache) for start, end in pairwise(ends)], dim=1)


@pytest.mark.parametrize(
    ("ranks", "ep"), [(2, False), (2, True), *(pytest.param(4, ep, marks=pytest.mark.slow) for ep in (False, True))]
)
def test_ranks_compute_what_one_process_does(ranks: int, ep: bool) -> None:
    """Logits, gradients, and the bytes that the formula says. Four ranks have fewer KV heads, key heads or groups; of a
    single token in each of two sequences, two of four ranks with whole experts route none."""
    names = list(representatives() if ranks == 2 else distinct())
    names = mixtures(names) if ep else names
    for found in in_ranks(ranks, compare, names, ep):
        assert list(found) == names
        assert not {name: each.logits for name, each in found.items() if not max(each.logits) <= BOUND}
        assert not {name: each.gradients for name, each in found.items() if each.gradients}
        for name, each in found.items():
            for measured, formula in (each.nbytes, each.count):
                assert measured == formula, name


def gradients_of(model: Model, logits: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def gathered(name: str, own: Tensor, like: Tensor, model: ParallelModel) -> Tensor:
    """All ranks' gradients of a parameter as one process has it, which is `like` this one: those of one element are
    summands, where each rank went on with it in a way of its own."""
    cut, total = cut_of(name, model.whole.cuts()), torch.zeros_like(like)
    if isinstance(cut, Cut):
        start = 0
        for rows in cut.slices(like.shape[cut.dim], model.group.rank):
            total.narrow(cut.dim, rows.start, len(rows)).add_(own.narrow(cut.dim, start, len(rows)))
            start += len(rows)
    else:
        total += own
    divided = {f"layers.{i}.{path}" for i, layer in enumerate(model.whole.layers) for path in summing(layer)}
    if isinstance(cut, Cut) or (cut is None and any(name.startswith(f"{path}.") for path in divided)):
        dist.all_reduce(total)
    return total


def far_gradients(part: ParallelModel, own: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    assert expected.keys() == own.keys()
    whole = {parameter: gathered(parameter, own[parameter], each, part) for parameter, each in expected.items()}
    return differing_gradients(whole, expected)


class Exchanged(TorchDispatchMode):
    """The number of collective operators, and bytes of the tensors of each kind: of what an all-reduce sums, of what an
    all-gather gives, of what an all-to-all sends."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.nbytes = 0, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        if "c10d" in func.namespace and name != "wait_tensor":
            self.count += 1
            kind = OPERATORS[name]
            self.nbytes[kind] += args[0].nbytes if kind == "all-to-all" else out.nbytes
        return out


@torch.no_grad()
def exchanged(part: ParallelModel, tokens: Tensor) -> tuple[tuple[Bytes, Bytes], tuple[int, int]]:
    """The bytes of each kind of collective in a pass of the last chunk in float32, over all ranks, by formula too; the
    number of collectives, by formula too."""
    ranks, spec = part.group.rank.ranks, part.whole
    cache = part.new_cache(2, LENGTH)
    part(tokens[:, :CHUNK], cache)
    with Exchanged() as measured:
        part(tokens[:, CHUNK:], cache, logits_to_keep=1)
    by_token, of_head = spec.exchanges(spec.dim, ranks), spec.head_exchange(ranks)
    formula = Counter[str]()
    for each in by_token:
        formula[each.kind] += each.nbytes(2 * (LENGTH - CHUNK), 4) * (1 if each.shared else ranks)
    formula[of_head.kind] += of_head.nbytes(2, 4) * ranks
    total = {kind: int(sums(nbytes)[0]) for kind, nbytes in measured.nbytes.items()}
    return (total, dict(formula)), (measured.count, len(by_token) + 1)


@torch.no_grad()
def compiled(device: torch.device, name: str) -> float:
    model, part, tokens = both(name)
    part.compile()
    expected, cache = model(tokens), part.new_cache(2, LENGTH)
    passes = [part(tokens[:, :CHUNK], cache), part(tokens[:, CHUNK : LENGTH - 3], cache)]
    passes += [part(tokens[:, i : i + 1], cache) for i in range(LENGTH - 3, LENGTH)]
    return largest_difference(torch.cat(passes, dim=1), expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", representatives())
def test_compiled_decode_is_that_of_one_process(name: str) -> None:
    assert max(in_ranks(2, compiled, name, seconds=800)) <= BOUND


@pytest.mark.parametrize(
    ("name", "ep"), [(name, ep) for ep in (False, True) for name in (mixtures if ep else list)(representatives())]
)
def test_a_part_that_is_drawn_is_that_of_the_model_that_is(name: str, ep: bool) -> None:
    """Whether the whole was ever in memory or not; its tables, too."""
    spec = zoo.spec(name, tiny=True)
    whole = zoo.build(spec, seed=7, dtype=torch.bfloat16)
    for rank in Rank(0, 2).all():
        group = Group("none", rank)
        part = build_part(spec, Ranks(group, ep), dtype=torch.bfloat16, seed=7).state_dict()
        expected = divide(whole, group, ep).state_dict()
        assert part.keys() == expected.keys()
        for key, value in expected.items():
            assert value.dtype == part[key].dtype
            assert torch.equal(value, part[key]), key


def test_modules_know_nothing_of_other_ranks_but_where_they_meet() -> None:
    """A swapped block is parallel by what it says; one that says nothing is computed whole by every rank."""
    spec = zoo.spec("gemma3", tiny=True)
    assert list(summing(spec.layers[0])) == ["attn.block", "ffn.block"]
    swapped = zoo.swap(spec, zoo.GLU, lambda ffn: zoo.MLP(ffn.hidden, zoo.ReLUSquared()))
    assert list(summing(swapped.layers[0])) == ["attn.block", "ffn.block"]


def test_first_rank_only_biases_are_zero_elsewhere() -> None:
    model = randomised(zoo.spec("gpt2", tiny=True))
    parts = [divide(model, Group("none", Rank(index, 2))) for index in range(2)]
    name = "layers.0.attn.block.o.bias"
    assert isinstance(cut_of(name, model.spec.cuts()), FirstRankOnly)
    assert torch.equal(parts[0].state_dict()[name], model.state_dict()[name])
    assert not parts[1].state_dict()[name].any()
