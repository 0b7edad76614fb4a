"""Decides which kernel computes an operation on this machine: by a short measurement, once, kept for later processes.

Models ask for it when they are loaded, built or compiled, and before their first pass. Nothing may be measured in a
thread, under a mode that intercepts calls, or while a compiler traces. There nothing is read either, so that results do
not depend on what ran before: operations use the plain kernels.
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

MIN_PARAMETERS = 2**25  # parameters of the smallest model that earns a measurement
MAX_SECONDS = 1.6  # timing of all decisions that are wanted at once; two seconds with their setup
SETTLED_TURNS, SETTLED_WITHIN = 3, 1.1  # turns, and their maximum time as a multiple of the fastest one's
MAX_TIME_RATIO = 0.95  # another kernel is chosen below this share of the plain one's time
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
KEYS, KEYS_HINT = 4096, 1024  # keys in its cache, and the number that its compiler assumes
DECODE_HEADS = ((9, 3, 64), (4, 1, 256))
READ_BYTES = 2**26  # read by all calls of single-token decode together
MATRIX_BYTES = 2**23  # read by one of its products
logger = logging.getLogger(__name__)


def decide_for(model: nn.Module, group: Group | None = None, compiled: bool = False) -> None:
    """Decides the kernels of a model on the CPU, if it is large enough to earn a measurement; `compiled` adds those of
    compiled code.

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
    """Returns the decisions on operations in these dtypes, those of compiled code last."""
    return [
        (name, dtype)
        for dtype in dtypes
        for name, operation in OPERATIONS.items()
        if dtype in operation.dtypes and (compiled or not name.startswith("compiled"))
    ]


def decide(wanted: Iterable[Decision], again: bool = False) -> None:
    """Takes the decisions that this machine has kept, and measures the rest; with `again` it measures all. Does nothing
    where the caller or ZOO_KERNELS has set the kernels."""
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
    """Returns the other kernel's time as a multiple of the plain kernel's: the geometric mean over the calls of the
    trial.

    Kernels take turns, and each call counts with its fastest turn, since other work on the machine can only slow it
    down. The measurement ends when each call was about as fast in several turns, or after `seconds`.
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
    """Whether each call took about its fastest time in several turns."""
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
    """Whether this process may measure now. It may not while a compiler traces, where a mode intercepts calls, beside
    other threads of the program, or with the compared libraries disabled."""
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


# Trials: an operation on shapes of released models, called as a forward pass calls it, once with each kernel chosen. A
# call takes about a millisecond, so that other work on the machine disturbs few of them: the matrices of a prefill are
# cut. The data of single-token decode do not fit in a processor's cache.


def trial(decision: Decision) -> Trial:
    """Returns the trial of an operation in a dtype."""
    operation, dtype = decision
    compute, operands = TRIALS[operation]
    groups = list(operands(dtype))
    if operation.startswith("compiled"):
        return lambda: _compiled_calls(compute, groups)
    return lambda: [partial(compute, *pair) for pairs in groups for pair in pairs]


def _compiled_calls(compute: Compute, groups: list[Pairs]) -> list[Call]:
    """A call of compiled code computes all shapes of a group, so that they are compiled together: a shape alone takes
    half as long."""
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
    """Yields the rows of a prefill and a matrix for each width."""
    yield [(_filled(ROWS, width, dtype=dtype), _filled(out, width, dtype=dtype)) for width, out in PRODUCTS]


def _prefill_heads(dtype: torch.dtype) -> Iterator[Pairs]:
    """Yields the queries of a prefill with its keys and values for each number of heads."""
    yield [
        (_filled(1, queries, TOKENS, width, dtype=dtype), _filled(2, 1, keys, TOKENS, width, dtype=dtype))
        for queries, keys, width in PREFILL_HEADS
    ]


def _products(dtype: torch.dtype) -> Iterator[Pairs]:
    """Yields pairs of a token (1, 1, in) and a matrix (out, in), one pair per width, again and again."""
    for _ in range(READ_BYTES // (MATRIX_BYTES * len(WIDTHS))):
        shapes = [(width, MATRIX_BYTES // dtype.itemsize // width) for width in WIDTHS]
        yield [(_filled(1, 1, width, dtype=dtype), _filled(out, width, dtype=dtype)) for width, out in shapes]


def _caches(dtype: torch.dtype) -> Iterator[Pairs]:
    """Yields a token's queries with keys and values for each number of heads, again and again."""
    nbytes = sum(2 * keys * KEYS * width * dtype.itemsize for _, keys, width in DECODE_HEADS)
    for _ in range(READ_BYTES // nbytes):
        yield [
            (_filled(1, queries, 1, width, dtype=dtype), _filled(2, 1, keys, KEYS, width, dtype=dtype))
            for queries, keys, width in DECODE_HEADS
        ]


def _filled(*shape: int, dtype: torch.dtype) -> Tensor:
    """Returns a tensor of equal elements. Only zeros and subnormal numbers take a different time; any other value
    will do."""
    return torch.full(shape, 0.5, dtype=dtype, device="cpu")


TRIALS: dict[str, tuple[Compute, Callable[[torch.dtype], Iterator[Pairs]]]] = {
    "linear prefill": (linear, _prefill_products),
    "linear decode": (linear, _products),
    "attention prefill": (_attend, _prefill_heads),
    "compiled decode linear": (linear, _products),
    "compiled decode attention": (_attend, _caches),
}
