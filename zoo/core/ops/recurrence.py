"""Linear recurrences over tokens with a state of fixed size: the gated delta rule and Mamba-2's state-space model.

Each has two implementations that agree up to rounding: a step for a single token, and a chunked form for several
tokens. The chunked form uses matrix products within all chunks of `CHUNK` tokens at once, and passes the state from
chunk to chunk (Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule", section 3; Dao and Gu 2024,
"Transformers are SSMs", section 6). Both start from any state.

Arithmetic is in at least float32, under autocast too. Decays are logarithms, at most 0. Only their sums within a
chunk are exponentiated, so that no exponential exceeds one.

Sizes: b sequences, t tokens; h heads, of which h/g share each of g keys and queries; d the width of keys, w of values.
Inside: n chunks of c tokens each; s = b * h.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from zoo.core.float32 import upcast_dtype
from zoo.core.ops.chunk_loop import pass_on
from zoo.costs import linear_flops

CHUNK = 64  # tokens per chunk
SEGMENT, CPU_SEGMENT = 2048, 128  # tokens per segment; a CPU's caches hold the tensors of CPU_SEGMENT
BASE = 16  # tokens per block; inside a block, per-channel decays are computed for each pair of tokens
Form = Callable[..., tuple[Tensor, Tensor]]  # streams (b, t, ...) and a state -> outputs and the state afterwards


def plain_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes `gated_delta_rule` token by token, with S (b, h, d, w):

    S <- exp(decay) S;  S <- S + k (beta (v - S^T k))^T;  y = S^T q.
    """
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], dim=2) for x in (q, k))
    outs = []
    for t in range(v.shape[1]):
        state = decay[:, t].exp().unsqueeze(-1) * state
        error = v[:, t] - torch.einsum("bhdw,bhd->bhw", state, k[:, t])
        state = state + torch.einsum("bhd,bhw->bhdw", k[:, t], beta[:, t, :, None] * error)
        outs.append(torch.einsum("bhdw,bhd->bhw", state, q[:, t]))
    return torch.stack(outs, dim=1), state


def plain_state_space(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Computes `state_space` token by token, with S (b, h, w, d): S <- exp(decay) S + v k^T;  y = S q."""
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], dim=2) for x in (q, k))
    outs = []
    for t in range(v.shape[1]):
        state = decay[:, t, :, None, None].exp() * state + torch.einsum("bhw,bhd->bhwd", v[:, t], k[:, t])
        outs.append(torch.einsum("bhwd,bhd->bhw", state, q[:, t]))
    return torch.stack(outs, dim=1), state


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the outputs (b, t, h, w) and the state after the last token, in at least float32.

    Shapes: q, k (b, t, g, d), v (b, t, h, w), decay (b, t, h, 1 or d), beta (b, t, h), state (b, h, d, w).
    For each token and head: S <- exp(decay) S; S <- S + k (beta (v - S^T k))^T; the output is S^T q. With one decay per
    head this is Gated DeltaNet (Yang et al. 2025, section 3.1). With one decay per key channel this is Kimi Delta
    Attention (Kimi Team 2025, section 3).
    """
    return _in_form(_delta_step, _delta_chunks, _delta_operator, q, k, v, decay, beta, state)


def state_space(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the outputs (b, t, h, w) and the state after the last token, in at least float32.

    Shapes: q, k (b, t, g, d), v (b, t, h, w), decay (b, t, h), state (b, h, w, d).
    For each token and head: S <- exp(decay) S + v k^T; the output is S q. In Mamba-2 (Dao and Gu 2024) q is C, k is B,
    v is x times the time step, and decay is A times the time step.
    """
    return _in_form(_state_space_step, _state_space_chunks, _state_space_operator, q, k, v, decay, state)


def _in_form(step: Form, chunks: Form, operator: Form, *given: Tensor) -> tuple[Tensor, Tensor]:
    """Runs the step or the chunked form of a recurrence. In compiled code without gradients, the whole chunked form is
    one operator for every number of tokens."""
    with torch.autocast(given[0].device.type, enabled=False):
        given = _exact(*given)
        if given[0].shape[1] == 1:
            return step(*given)
        if not torch.compiler.is_compiling():
            return _in_segments(chunks, *given)
        if torch.is_grad_enabled() or torch.compiler.is_exporting():
            return chunks(*given)
        return operator(*given)


def l2_normalise(x: Tensor) -> Tensor:
    """Returns x / sqrt(sum of x^2 + 1e-6) over the last axis, in at least float32, for the delta rule's queries and
    keys."""
    x = _exact(x)[0]
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def gated_delta_flops(
    new: int, key_heads: int, heads: int, key_dim: int, value_dim: int, per_channel: bool = False, causal: bool = True
) -> int:
    """Returns the FLOPs of `gated_delta_rule` over `new` tokens, by the convention of zoo.costs.

    With `causal`, it counts the recurrence itself: three products of state and vector per token and head. Otherwise it
    counts the matrix products of the code that runs, over whole chunks, without the triangular solve.
    """
    if causal or new == 1:  # the step's update is an outer product
        return new * heads * (3 if causal else 2) * linear_flops(1, key_dim, value_dim)
    scores = 2 * key_heads * linear_flops(CHUNK, key_dim, CHUNK)
    if per_channel:  # in the smallest blocks, and between neighbouring blocks of each size
        reached = BASE + sum(size // 2 for size in _block_sizes())
        scores = 2 * heads * linear_flops(CHUNK, key_dim, reached)
    states = 3 * linear_flops(CHUNK, key_dim, value_dim)
    return -(-new // CHUNK) * (scores + heads * (states + 2 * linear_flops(CHUNK, CHUNK, value_dim)))


def state_space_flops(new: int, key_heads: int, heads: int, key_dim: int, value_dim: int, causal: bool = True) -> int:
    """Returns the FLOPs of `state_space` over `new` tokens, counted as in `gated_delta_flops`."""
    if causal or new == 1:
        return new * heads * (2 if causal else 1) * linear_flops(1, key_dim, value_dim)
    scores = key_heads * linear_flops(CHUNK, key_dim, CHUNK)
    states = 2 * linear_flops(CHUNK, key_dim, value_dim)
    return -(-new // CHUNK) * (scores + heads * (states + linear_flops(CHUNK, CHUNK, value_dim)))


def initial_decay_rates(heads: int) -> list[float]:
    """Returns A_log of a fresh model: logarithms of evenly spaced rates from 1 to 16 (random in Mamba-2)."""
    return [math.log(1 + 15 * i / max(heads - 1, 1)) for i in range(heads)]


def initial_time_steps(count: int) -> list[float]:
    """Returns dt_bias of a fresh model: its softplus gives time steps from 1e-3 to 0.1, log-spaced (Mamba-2)."""
    shortest, longest = 1e-3, 0.1
    ratio = (longest / shortest) ** (1 / max(count - 1, 1))
    return [math.log(math.expm1(shortest * ratio**i)) for i in range(count)]


# A single token.


def _delta_step(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Computes `gated_delta_rule` for t = 1.

    Key and query read the old state together: after the update, S^T q is (decayed S)^T q + (k . q) correction.
    """
    q, k, v, decay, beta = (x.squeeze(1) for x in (q, k, v, decay, beta))
    q, k = (_per_head(x, v.shape[1]) for x in (q, k))
    kept = decay.exp()
    read = torch.stack([kept * k, kept * q], dim=2) @ state  # (b, h, 2, w)
    correction = beta.unsqueeze(-1) * (v - read[:, :, 0])
    out = read[:, :, 1] + (k * q).sum(-1, keepdim=True) * correction
    return out.unsqueeze(1), torch.addcmul(kept.unsqueeze(-1) * state, k.unsqueeze(-1), correction.unsqueeze(-2))


def _state_space_step(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Computes `state_space` for t = 1."""
    q, k, v, decay = (x.squeeze(1) for x in (q, k, v, decay))
    q, k = (_per_head(x, v.shape[1]) for x in (q, k))
    state = torch.addcmul(decay.exp()[..., None, None] * state, v.unsqueeze(-1), k.unsqueeze(-2))
    return (state @ q.unsqueeze(-1)).squeeze(-1).unsqueeze(1), state


def _per_head(x: Tensor, heads: int) -> Tensor:
    """Repeats (b, g, ...) to (b, h, ...): heads i * h/g to (i + 1) * h/g - 1 share key i."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _exact(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Returns all tensors in float32, or in float64 if the first tensor is in float64."""
    dtype = upcast_dtype(tensors[0].dtype)
    return tuple(x.to(dtype) for x in tensors)


# The chunked forms.


def _in_segments(chunks: Form, *given: Tensor) -> tuple[Tensor, Tensor]:
    """Runs `chunks` over streams (b, t, ...) and a state, one segment of tokens at a time."""
    *streams, state = given
    tokens, outs = CPU_SEGMENT if state.is_cpu else SEGMENT, []
    for start in range(0, streams[0].shape[1], tokens):
        out, state = chunks(*(stream[:, start : start + tokens] for stream in streams), state)
        outs.append(out)
    return torch.cat(outs, dim=1), state


def _delta_chunks(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Computes `gated_delta_rule` over all chunks at once.

    Let S be the state at the start of a chunk and U the values that its tokens write. U solves a unit lower triangular
    system: (I + L) U = beta (v - exp(total) k S), where L holds beta_i (k_i . k_j) exp(total_i - total_j) for j < i.
    """
    new, shape = v.shape[1], (k.shape[2], v.shape[2] // k.shape[2])
    q, k, v, decay, beta = (_in_chunks(x) for x in (q, k, v, decay, beta.unsqueeze(-1)))
    total = decay.cumsum(-2)  # sums from the chunk's first token up to each token
    last = total[..., -1:, :]

    def decayed(x: Tensor, by: Tensor) -> Tensor:
        """Returns exp(by) * x (b, h, n, c, d), for x (b, g, n, c, d) of each group and by (b, h, n, ...) of each
        head."""
        return (x.unsqueeze(2) * by.exp().unflatten(1, shape)).flatten(1, 2)

    if decay.shape[-1] == 1:
        sums = _pair_sums(decay)
        pairs, rest = sums.exp().unflatten(1, shape), sums[..., -1:, :].mT
        keys, queries = (((x @ k.mT).unsqueeze(2) * pairs).flatten(1, 2) for x in (k, q))
    else:
        rest = last - total
        keys, queries = _channel_scores(torch.stack([k, q]).repeat_interleave(shape[1], dim=2), total)
    identity = torch.eye(CHUNK, dtype=k.dtype, device=k.device).expand(keys.shape)
    # Inverting is cheaper than solving for all columns of the values.
    inverse = torch.linalg.solve_triangular(beta * keys, identity, upper=False, unitriangular=True) * beta.mT
    starts, written, state = pass_on(last.exp().mT, decayed(k, rest), decayed(k, total), inverse, v, state)
    return _in_tokens(decayed(q, total) @ starts + queries @ written, new), state


def _state_space_chunks(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Computes `state_space` over all chunks at once. Heads that share a key are computed as one matrix product."""
    (_, new, _, width), shape = v.shape, (k.shape[2], v.shape[2] // k.shape[2])
    q, k, v, decay = (_in_chunks(x) for x in (q, k, v, decay.unsqueeze(-1)))
    total = decay.cumsum(-2)
    last = total[..., -1:, :]
    sums = _pair_sums(decay)
    out = ((q @ k.mT).unsqueeze(2) * sums.exp().unflatten(1, shape)).flatten(1, 2) @ v

    def side_by_side(x: Tensor) -> Tensor:
        """Concatenates the heads of each key: (b, h, n, c, w) to (b, g, n, c, h/g * w)."""
        return x.unflatten(1, shape).permute(0, 1, 3, 4, 2, 5).flatten(-2)

    write = side_by_side(v * sums[..., -1:, :].mT.exp())
    kept = side_by_side(last.exp().expand(-1, -1, -1, -1, width)).mT
    starts, _, after = pass_on(kept, write, None, None, k, state.unflatten(1, shape).flatten(2, 3))
    before = (q @ starts.mT).unflatten(-1, (shape[1], width)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
    return _in_tokens(torch.addcmul(out, before, total.exp()), new), after.view(state.shape)


def _in_chunks(x: Tensor) -> Tensor:
    """Reshapes (b, t, h, w) to (b, h, n, c, w), padded with zeros.

    Padding tokens do not change the state: their decay factor is one, and they erase and write nothing.
    """
    chunks = -(-x.shape[1] // CHUNK)
    padding = chunks * CHUNK - x.shape[1]
    if torch.compiler.is_compiling() or padding:  # compiled code always pads: one graph serves every length
        x = F.pad(x, (0, 0, 0, 0, 0, padding))
    return x.unflatten(1, (chunks, CHUNK)).permute(0, 3, 1, 2, 4).contiguous()


def _in_tokens(x: Tensor, new: int) -> Tensor:
    """Reshapes (b, h, n, c, w) to (b, t, h, w), with t = `new`."""
    return x.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :new].contiguous()


def _pair_sums(decay: Tensor) -> Tensor:
    """Returns, for decay (..., c, 1), the sums (..., c, c) of the decays after token j up to token i; -inf for j > i.

    Each sum is computed separately. The difference of two cumulative sums would carry their rounding error, which grows
    along the chunk: in float32, outputs would have twice the error of released code.
    """
    before = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=decay.device).tril(-1)
    sums = torch.where(before, decay, 0.0).cumsum(-2)
    return sums.masked_fill(before.mT, float("-inf"))


def _channel_scores(rows: Tensor, total: Tensor) -> Tensor:
    """Returns decayed products (2, ..., c, c) of each row i and key j, for rows (2, ..., c, d), total (..., c, d).

    `rows` stacks keys and queries. Each channel decays by exp(total_i - total_j); products with j > i are zero. For two
    neighbouring blocks this is one matrix product, because the decay splits at the earlier block's last token: keys
    decay up to it, and the later block's rows decay from it on. Inside the smallest blocks, all pairs' decays are in
    memory.
    """
    blocks, totals = (x.unflatten(-2, (CHUNK // BASE, BASE)) for x in (rows, total))  # (..., c / BASE, BASE, d)
    later = torch.ones(BASE, BASE, dtype=torch.bool, device=rows.device).triu(1).unsqueeze(-1)
    decays = (totals.unsqueeze(-2) - totals.unsqueeze(-3)).masked_fill(later, float("-inf")).exp()
    scores = torch.einsum("m...id,...ijd->m...ij", blocks, decays * blocks[0].unsqueeze(-3))
    for size in _block_sizes():
        scores = _joined(scores, rows, total, size)
    return scores.squeeze(-3)


def _block_sizes() -> list[int]:
    """Returns the sizes, in tokens, of the blocks that are joined in pairs until one block is a chunk."""
    return [size for size in (2**i for i in range(CHUNK.bit_length())) if BASE <= size < CHUNK]


def _joined(scores: Tensor, rows: Tensor, total: Tensor, size: int) -> Tensor:
    """Extends scores inside blocks of `size` tokens, (2, ..., c / size, size, size), to blocks twice as large."""
    rows, total = (x.unflatten(-2, (CHUNK // (2 * size), 2, size)) for x in (rows, total))
    middle = total[..., 0, -1:, :]
    after = rows[..., 1, :, :] * (total[..., 1, :, :] - middle).exp()
    before = rows[0, ..., 0, :, :] * (middle - total[..., 0, :, :]).exp()
    earlier, later = scores.unflatten(-3, (CHUNK // (2 * size), 2)).unbind(-3)
    above = torch.cat([earlier, torch.zeros_like(earlier)], dim=-1)
    return torch.cat([above, torch.cat([after @ before.mT, later], dim=-1)], dim=-2)


def _operator(name: str, chunks: Form, streams: str) -> Form:
    """Returns a chunked form as one operator of compiled code."""
    schema = f"({', '.join(f'Tensor {each}' for each in streams.split())}, Tensor state) -> (Tensor, Tensor)"
    made = custom_op(name, partial(_in_segments, chunks), mutates_args=(), schema=schema)
    made.register_fake(lambda q, k, v, *rest: (v.new_empty(v.shape), rest[-1].new_empty(rest[-1].shape)))
    return made


_delta_operator = _operator("zoo::gated_delta_rule", _delta_chunks, "q k v decay beta")
_state_space_operator = _operator("zoo::state_space", _state_space_chunks, "q k v decay")
