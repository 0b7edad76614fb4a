"""The sequential part of a chunked recurrence: the state is passed from chunk to chunk.

The compiler can neither loop over an unknown number of chunks nor differentiate such a loop. In compiled code, the loop
is one operator with a gradient of its own.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op


def pass_on(
    kept: Tensor, write: Tensor, erase: Tensor | None, inverse: Tensor | None, value: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes, for each of n chunks in turn: U = inverse (value - erase S); S <- kept S + write^T U.

    Without `erase`, U is the value. Shapes: kept (b, h, n, d or 1, 1), write and erase (b, h, n, c, d), inverse (b, h,
    n, c, c), value (b, h, n, c, w), state S (b, h, d, w). Returns each chunk's initial S (b, h, n, d, w), each U (b, h,
    n, c, w) and the last S (b, h, d, w).
    """
    if erase is not None and inverse is not None:
        erase, inverse = erase.flatten(0, 1), inverse.flatten(0, 1)
    run = _loop_operator if torch.compiler.is_compiling() else _loop
    kept, write, value = (x.flatten(0, 1) for x in (kept, write, value))
    starts, written, after = run(kept, write, erase, inverse, value, state.flatten(0, 1))
    heads = state.shape[:2]
    return starts.unflatten(0, heads), written.unflatten(0, heads), after.unflatten(0, heads)


def _loop(
    kept: Tensor, write: Tensor, erase: Tensor | None, inverse: Tensor | None, value: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes `pass_on` on tensors with one axis s = b * h for sequences and heads."""
    starts, written = [], []
    for i in range(value.shape[1]):
        starts.append(state)
        new = value[:, i]
        if erase is not None and inverse is not None:
            new = inverse[:, i] @ new.baddbmm(erase[:, i], state, alpha=-1)
        written.append(new)
        state = (kept[:, i] * state).baddbmm(write[:, i].mT, new)
    return torch.stack(starts, dim=1), torch.stack(written, dim=1), state.contiguous()  # as _like_loop promises


_loop_operator = custom_op("zoo::chunk_loop", _loop, mutates_args=())


@_loop_operator.register_fake
def _like_loop(
    kept: Tensor, write: Tensor, erase: Tensor | None, inverse: Tensor | None, value: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    starts = state.new_empty(state.shape[0], value.shape[1], *state.shape[1:])
    return starts, value.new_empty(value.shape), state.new_empty(state.shape)


@custom_op("zoo::chunk_loop_backward", mutates_args=())
def _loop_backward_operator(
    d_starts: Tensor,
    d_written: Tensor,
    d_state: Tensor,
    kept: Tensor,
    write: Tensor,
    erase: Tensor | None,
    inverse: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of each chunk's final S (s, n, d, w), each U (s, n, c, w), and the first S (s, d, w)."""
    after, written = [], []
    for i in reversed(range(write.shape[1])):
        after.append(d_state)
        written.append(d_written[:, i].baddbmm(write[:, i], d_state))
        d_state = torch.addcmul(d_starts[:, i], kept[:, i], d_state)
        if erase is not None and inverse is not None:
            d_state = d_state.baddbmm(erase[:, i].mT, inverse[:, i].mT @ written[-1], alpha=-1)
    # d_state may be transposed, as incoming gradients may be; the registered fake promises a contiguous tensor.
    return torch.stack(after[::-1], dim=1), torch.stack(written[::-1], dim=1), d_state.contiguous()


_loop_backward_operator.register_fake(lambda *given: tuple(x.new_empty(x.shape) for x in given[:3]))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], *output[:2])


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    kept, write, erase, inverse, value, starts, written = ctx.saved_tensors
    after, d_value, d_state = _loop_backward_operator(*grads, kept, write, erase, inverse)
    d_kept, d_write, d_erase, d_inverse = (after * starts).sum_to_size(kept.shape), written @ after.mT, None, None
    if erase is not None:
        d_inverse = d_value @ (value - erase @ starts).mT
        d_value = inverse.mT @ d_value
        d_erase = -d_value @ starts.mT
    return d_kept, d_write, d_erase, d_inverse, d_value, d_state


_loop_operator.register_autograd(_differentiate, setup_context=_save_for_backward)
