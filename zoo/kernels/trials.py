"""The trials that decide a kernel: an operation on shapes of released models, called as a forward pass calls it.

The operation itself is called, once with torch's own kernel chosen and once with the other one. Widths are those of
models of 135 million to 8 billion parameters. Calls take about a millisecond, so that other work on the machine
disturbs few of them: the matrices of a prefill are cut. The data of single-token decode do not fit in a processor's
cache.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from zoo.core import inductor
from zoo.core.kernels import Decision
from zoo.core.ops.attention import attention
from zoo.core.ops.linear import linear

Call = Callable[[], object]
Trial = Callable[[], list[Call]]  # returns calls, which use the kernels chosen when they first run

ROWS = 128  # rows of a prefill's products
PRODUCTS = ((576, 1536), (1024, 768), (2048, 512), (4096, 256))  # in, out
TOKENS = 256  # tokens of a prefill
PREFILL_HEADS = ((9, 3, 64), (8, 4, 128), (4, 1, 256))  # query heads, key heads, width
WIDTHS = (576, 1024, 2048, 4096)  # widths of a decoded token
KEYS, KEYS_HINT = 4096, 1024  # keys in its cache, and the number that its compiler assumes
DECODE_HEADS = ((9, 3, 64), (4, 1, 256))
READ_BYTES = 2**26  # read by all calls of single-token decode together
MATRIX_BYTES = 2**23  # read by one of its products


def trial(decision: Decision) -> Trial:
    """Returns the trial of an operation in a dtype."""
    operation, dtype = decision
    return TRIALS[operation](dtype)


def _linear_prefill(dtype: torch.dtype) -> Trial:
    operands = [(_filled(ROWS, width, dtype=dtype), _filled(out, width, dtype=dtype)) for width, out in PRODUCTS]
    return lambda: [partial(linear, *given) for given in operands]


def _linear_decode(dtype: torch.dtype) -> Trial:
    operands = [pair for pairs in _products(dtype) for pair in pairs]
    return lambda: [partial(linear, *given) for given in operands]


def _attention_prefill(dtype: torch.dtype) -> Trial:
    operands = [
        (_filled(1, queries, TOKENS, width, dtype=dtype), _filled(2, 1, keys, TOKENS, width, dtype=dtype))
        for queries, keys, width in PREFILL_HEADS
    ]
    return lambda: [partial(_attend, *given) for given in operands]


# A call of compiled code computes all shapes, so that they are compiled together: a shape alone takes half as long.


def _compiled_linear(dtype: torch.dtype) -> Trial:
    operands = list(_products(dtype))

    def multiply(pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        return [linear(x, weight) for x, weight in pairs]

    def calls() -> list[Call]:
        compiled = inductor.compiled(multiply, dynamic=False)
        return [partial(compiled, pairs) for pairs in operands]

    return calls


def _compiled_attention(dtype: torch.dtype) -> Trial:
    operands = list(_caches(dtype))

    def attend(pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        return [_attend(q, stored) for q, stored in pairs]

    def calls() -> list[Call]:
        from torch._dynamo.decorators import mark_unbacked

        for pairs in operands:
            for _, stored in pairs:  # as in a model, which compiles one function for any number of keys
                mark_unbacked(stored, 3, hint_override=KEYS_HINT)
        compiled = inductor.compiled(attend, dynamic=False)
        return [partial(compiled, pairs) for pairs in operands]

    return calls


TRIALS: dict[str, Callable[[torch.dtype], Trial]] = {
    "linear prefill": _linear_prefill,
    "linear decode": _linear_decode,
    "attention prefill": _attention_prefill,
    "compiled decode linear": _compiled_linear,
    "compiled decode attention": _compiled_attention,
}


def _attend(q: Tensor, stored: Tensor) -> Tensor:
    """q (b, h, t, d), keys and values (2, b, g, s, d) -> (b, h, t, d)"""
    k, v = stored.unbind()
    return attention(q, k, v, None, q.shape[3] ** -0.5)


def _products(dtype: torch.dtype) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yields pairs of a token (1, 1, in) and a matrix (out, in), one pair per width, again and again."""
    for _ in range(READ_BYTES // (MATRIX_BYTES * len(WIDTHS))):
        shapes = [(width, MATRIX_BYTES // dtype.itemsize // width) for width in WIDTHS]
        yield [(_filled(1, 1, width, dtype=dtype), _filled(out, width, dtype=dtype)) for width, out in shapes]


def _caches(dtype: torch.dtype) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yields a token's queries with keys and values for each number of heads, again and again."""
    nbytes = sum(2 * keys * KEYS * width * dtype.itemsize for _, keys, width in DECODE_HEADS)
    for _ in range(READ_BYTES // nbytes):
        yield [
            (_filled(1, queries, 1, width, dtype=dtype), _filled(2, 1, keys, KEYS, width, dtype=dtype))
            for queries, keys, width in DECODE_HEADS
        ]


def _filled(*shape: int, dtype: torch.dtype) -> Tensor:
    """Returns a tensor of equal elements. Zeros and subnormal numbers alone would take another time than other
    values."""
    return torch.full(shape, 0.5, dtype=dtype, device="cpu")
