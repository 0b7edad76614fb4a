"""Decides which kernel computes an operation on this machine. It measures once, briefly, and stores the decision.

This happens when models are loaded, built or compiled. In a thread other than the main one, under a mode that
intercepts torch's calls, or while a compiler traces, measuring is not allowed. Stored decisions are not read there
either, so that results do not depend on earlier runs: undecided operations use the plain kernels.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import exp, log
from statistics import fmean
from time import perf_counter

import torch
from torch import Tensor, nn

from zoo.core import inductor, kernels
from zoo.core.collectives import Group, summed
from zoo.core.kernels import OPERATIONS, PLAIN, Decision, KernelChoices, active
from zoo.core.ops.attention import attention
from zoo.core.ops.linear import linear
from zoo.kernel_choice import kept

MIN_PARAMETERS = 2**25  # parameters of the smallest model that is worth a measurement
MAX_SECONDS = 1.6  # timing of all decisions of one call; two seconds with their setup
SETTLED_TURNS, SETTLED_WITHIN = 3, 1.1  # turns that must be about equally fast: at most 1.1 x the fastest
MAX_TIME_RATIO = 0.95  # the other kernel is chosen if it takes at most this share of the plain kernel's time
Call = Callable[[], object]
Trial = Callable[[], list[Call]]  # returns calls, which use the kernels chosen when they first run
Compute = Callable[[Tensor, Tensor], Tensor]
Pairs = list[tuple[Tensor, Tensor]]  # operands

# Trials. Widths are those of models of 135 million to 8 billion parameters.
ROWS = 128  # rows of a prefill's products
PRODUCTS = ((576, 1536), (1024, 768), (2048, 512), (4096, 256))  # in, out
TOKENS = 256  # tokens of a prefill
PREFILL_HEADS = ((9, 3, 64), (8, 4, 128), (4, 1, 256))  # query heads, key heads, width
WIDTHS = (576, 1024, 2048, 4096)  # widths of a decoded token
KEYS, KEYS_HINT = 4096, 1024  # keys in the decoded token's cache, and the number that the compiler assumes
DECODE_HEADS = ((9, 3, 64), (4, 1, 256))
READ_BYTES = 2**26  # bytes read by all calls of single-token decode together
MATRIX_BYTES = 2**23  # bytes read by one product of single-token decode
logger = logging.getLogger(__name__)


def decide_for(model: nn.Module, group: Group | None = None, compiled: bool = False) -> None:
    """Decides the kernels for a model on the CPU that is large enough to be worth a measurement. `compiled` adds the
    kernels of compiled code.

    If a `group` of ranks divides the model, rank 0 decides for all, and every rank calls this. The ranks' results must
    be equal to the last bit, or their routers would choose different experts.
    """
    parameters = list(model.parameters())
    first = parameters[0]
    small = group is None and sum(each.numel() for each in parameters) < MIN_PARAMETERS
    if active().is_set or first.device.type != "cpu" or small:
        return
    wanted = decisions([first.dtype], compiled)
    if group is None:
        decide(wanted)
    elif wanted:
        _decide_in_group(wanted, group)


def decisions(dtypes: Iterable[torch.dtype], compiled: bool = False) -> list[Decision]:
    """Returns (operation, dtype) for all operations in these dtypes; operations of compiled code only if `compiled`."""
    return [
        (name, dtype)
        for dtype in dtypes
        for name, operation in OPERATIONS.items()
        if dtype in operation.dtypes and (compiled or not name.startswith("compiled"))
    ]


def decide(wanted: Iterable[Decision], again: bool = False) -> None:
    """Loads stored decisions and measures the missing ones; with `again` it measures all. Does nothing if kernels were
    set."""
    choices = active()
    missing = [each for each in wanted if again or each not in choices.chosen]
    if choices.is_set or not missing or not _can_measure():
        return
    found = {} if again else kept.read()
    if not found.keys() >= set(missing):
        with kept.one_at_a_time():
            found = {} if again else kept.read()
            measured: dict[Decision, str] = {}
            undecided = [each for each in missing if each not in found]
            for each in undecided:
                measured[each] = measure(each, choices.chosen | found | measured, MAX_SECONDS / len(undecided))
            kept.write(measured)
            found |= measured
    choices.add({each: found[each] for each in missing})


def measure(decision: Decision, chosen: Mapping[Decision, str], seconds: float) -> str:
    """Returns the faster kernel for an operation by a short measurement, with the kernels `chosen` for other
    operations."""
    operation, _ = decision
    return OPERATIONS[operation].kernel if time_ratio(decision, chosen, seconds) <= MAX_TIME_RATIO else PLAIN


def time_ratio(decision: Decision, chosen: Mapping[Decision, str], seconds: float) -> float:
    """Returns the other kernel's time divided by the plain kernel's time, as a geometric mean over the calls that
    `trial` makes.

    The kernels take turns. Each call counts with its fastest turn, since other work on the machine can only slow it
    down. The measurement ends when each call has about its fastest time in several turns, or after `seconds`.
    """
    pair = [KernelChoices({**chosen, decision: kernel}) for kernel in (PLAIN, OPERATIONS[decision[0]].kernel)]
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        make = trial(decision)
        calls = [make() for _ in pair]
        for each in zip(pair, calls, strict=True):
            _time(*each)  # compiles code and touches memory
        turns: list[list[float]] = []
        began = perf_counter()
        while len(turns) < SETTLED_TURNS or (perf_counter() - began < seconds and not _settled(turns)):
            turns.append([time for each in zip(pair, calls, strict=True) for time in _time(*each)])
    if not _settled(turns):
        logger.warning(
            "%s was decided while the machine was busy; python -m zoo.kernels --again decides anew",
            kernels.name(decision),
        )
    fastest = [min(times) for times in zip(*turns, strict=True)]
    half = len(fastest) // 2
    return exp(fmean(log(other / plain) for plain, other in zip(fastest[:half], fastest[half:], strict=True)))


def _settled(turns: list[list[float]]) -> bool:
    """Whether each call was about as fast as its fastest turn in several turns."""
    return all(sorted(times)[SETTLED_TURNS - 1] <= SETTLED_WITHIN * min(times) for times in zip(*turns, strict=True))


def _time(choices: KernelChoices, calls: list[Call]) -> list[float]:
    """Returns the seconds that each call takes."""
    found = []
    with kernels.using(choices):
        for call in calls:
            began = perf_counter()
            call()
            found.append(perf_counter() - began)
    return found


def _can_measure() -> bool:
    """Whether this process may measure now: only in the main thread, and not while a compiler traces, under a mode that
    intercepts calls, or with one of the compared libraries disabled."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and threading.current_thread() is threading.main_thread()
        and torch._C._get_mkldnn_enabled()
        and torch.backends.cuda.flash_sdp_enabled()
    )


def _decide_in_group(wanted: list[Decision], group: Group) -> None:
    """Gives every rank the decisions of rank 0."""
    first = group.rank.index == 0
    if first:
        decide(wanted)
    own = torch.tensor([first and kernels.is_replaced(*each) for each in wanted], dtype=torch.int64, device="cpu")
    for each, flag in zip(wanted, summed(own, group).tolist(), strict=True):
        active().add({each: OPERATIONS[each[0]].kernel if flag else PLAIN})


# Trials: an operation on shapes of released models, called as in a forward pass, with each of its two kernels. A call
# takes about a millisecond, so that other work on the machine disturbs few calls; prefill matrices are cut for this.
# The data of single-token decode do not fit in a processor's cache.


def trial(decision: Decision) -> Trial:
    """Returns a function that makes the calls to time for a decision, which is an operation and a dtype."""
    operation, dtype = decision
    compute, operands = TRIALS[operation]
    groups = list(operands(dtype))
    if operation.startswith("compiled"):
        return lambda: _compiled_calls(compute, groups)
    return lambda: [partial(compute, *pair) for pairs in groups for pair in pairs]


def _compiled_calls(compute: Compute, groups: list[Pairs]) -> list[Call]:
    """Returns one compiled call per group. A call computes all shapes of its group: compiling shapes one by one would
    take longer, since a single shape takes half as long as a group."""
    from torch._dynamo.decorators import mark_unbacked

    if compute is _attend:  # as in a model, which compiles one function for any number of keys
        for _, stored in (pair for pairs in groups for pair in pairs):
            mark_unbacked(stored, 3, hint_override=KEYS_HINT)
    compiled = inductor.compiled(lambda pairs: [compute(*pair) for pair in pairs], dynamic=False)
    return [partial(compiled, pairs) for pairs in groups]


def _attend(q: Tensor, stored: Tensor) -> Tensor:
    """q (b, h, t, d), keys and values (2, b, g, s, d) -> (b, h, t, d)"""
    k, v = stored.unbind()
    return attention(q, k, v, None, q.shape[3] ** -0.5)


def _prefill_products(dtype: torch.dtype) -> Iterator[Pairs]:
    """Yields one list with a pair for each width: the rows of a prefill, and a matrix."""
    yield [(_filled(ROWS, width, dtype=dtype), _filled(out, width, dtype=dtype)) for width, out in PRODUCTS]


def _prefill_heads(dtype: torch.dtype) -> Iterator[Pairs]:
    """Yields one list with a pair for each shape of heads: the queries of a prefill, and its keys and values."""
    yield [
        (_filled(1, queries, TOKENS, width, dtype=dtype), _filled(2, 1, keys, TOKENS, width, dtype=dtype))
        for queries, keys, width in PREFILL_HEADS
    ]


def _products(dtype: torch.dtype) -> Iterator[Pairs]:
    """Yields lists with one pair per width, a token (1, 1, in) and a matrix (out, in), up to READ_BYTES in all."""
    for _ in range(READ_BYTES // (MATRIX_BYTES * len(WIDTHS))):
        shapes = [(width, MATRIX_BYTES // dtype.itemsize // width) for width in WIDTHS]
        yield [(_filled(1, 1, width, dtype=dtype), _filled(out, width, dtype=dtype)) for width, out in shapes]


def _caches(dtype: torch.dtype) -> Iterator[Pairs]:
    """Yields lists with a pair for each shape of heads, a token's queries and its keys and values (READ_BYTES)."""
    nbytes = sum(2 * keys * KEYS * width * dtype.itemsize for _, keys, width in DECODE_HEADS)
    for _ in range(READ_BYTES // nbytes):
        yield [
            (_filled(1, queries, 1, width, dtype=dtype), _filled(2, 1, keys, KEYS, width, dtype=dtype))
            for queries, keys, width in DECODE_HEADS
        ]


def _filled(*shape: int, dtype: torch.dtype) -> Tensor:
    """Returns a tensor filled with 0.5. Any value would do, except zeros and subnormals, whose timing differs."""
    return torch.full(shape, 0.5, dtype=dtype, device="cpu")


TRIALS: dict[str, tuple[Compute, Callable[[torch.dtype], Iterator[Pairs]]]] = {
    "linear prefill": (linear, _prefill_products),
    "linear decode": (linear, _products),
    "attention prefill": (_attend, _prefill_heads),
    "compiled decode linear": (linear, _products),
    "compiled decode attention": (_attend, _caches),
}
