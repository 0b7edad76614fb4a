"""The blocks that are measured side by side, at one width: the one place where they are listed."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from zoo.blocks.glu import GLU, ClampedSwiGLU, GeGLU, SwiGLU
from zoo.blocks.gqa import GQA
from zoo.blocks.layer import PLACEMENTS
from zoo.blocks.mla import MLA
from zoo.blocks.moe import MoE
from zoo.blocks.norms import RMSNorm
from zoo.blocks.positions import NoPE, RoPE
from zoo.blocks.routers import GroupedSigmoidTopK, SoftmaxTopK
from zoo.errors import UsageError
from zoo.registry import Block

HEAD_DIM, SHARE = 64, 4  # width of a head; queries that share a key in GQA
WINDOW = 512
EXPERTS, CHOSEN = 16, 4  # each expert a CHOSEN-th as wide as the dense block: active parameters are equal


class Entry(NamedTuple):
    """A block under the name it has in tables. `group`: attention, feed-forward, norm or placement."""

    group: str
    label: str
    spec: Block


def entries(dim: int) -> list[Entry]:
    """Every block at width `dim`, which must be a multiple of 256, each beside those it is compared with.

    Attention has dim / 64 heads of 64, MLA in the proportions of DeepSeek-V2 (section 2.1.3). A feed-forward block has
    4 x dim active hidden numbers, dense or in experts. Raises UsageError for another width.
    """
    if dim < 1 or dim % (HEAD_DIM * SHARE):
        raise UsageError(f"--dim {dim} must be a multiple of {HEAD_DIM * SHARE}, for heads of {HEAD_DIM} in fours")
    ffn = _feed_forward(dim)
    placed: dict[str, Block] = {name: place(RMSNorm(1e-6), ffn["SwiGLU"]) for name, place in PLACEMENTS.items()}
    # Norms are last: a few microseconds, they would show the memory that an MoE before them gave back.
    found = {"attention": _attention(dim), "feed-forward": ffn, "placement": placed, "norm": _norms()}
    return [Entry(group, label, spec) for group, specs in found.items() for label, spec in specs.items()]


def _attention(dim: int) -> dict[str, Block]:
    heads, rope = dim // HEAD_DIM, RoPE(1e4)
    mha = GQA(heads=heads, kv_heads=heads, head_dim=HEAD_DIM, rope=rope)
    gqa = replace(mha, kv_heads=heads // SHARE)
    return {
        "MHA": mha,
        "GQA": gqa,
        "MQA": replace(mha, kv_heads=1),
        "SWA": replace(gqa, window=WINDOW),
        "MLA": MLA(
            heads=heads,
            q_rank=12 * HEAD_DIM,
            kv_rank=4 * HEAD_DIM,
            nope_dim=HEAD_DIM,
            rope_dim=HEAD_DIM // 2,
            v_dim=HEAD_DIM,
            norm=RMSNorm(1e-6),
            rope=rope,
        ),
        "GQA, NoPE": replace(gqa, rope=NoPE()),
        "GQA, QK-norm": replace(gqa, qk_norm=RMSNorm(1e-6)),
        "GQA, sinks": replace(gqa, sinks=True),
    }


def _feed_forward(dim: int) -> dict[str, Block]:
    dense, expert = GLU(4 * dim, SwiGLU()), GLU(4 * dim // CHOSEN)
    grouped = GroupedSigmoidTopK(k=CHOSEN - 1, groups=4, keep=2, scale=2.5)
    return {
        "SwiGLU": dense,
        "GeGLU": replace(dense, act=GeGLU()),
        "clamped SwiGLU": replace(dense, act=ClampedSwiGLU(alpha=1.702, limit=7.0)),
        "MoE, softmax": MoE(EXPERTS, expert, SoftmaxTopK(k=CHOSEN)),
        "MoE, shared": MoE(EXPERTS, expert, grouped, shared=expert),
    }


def _norms() -> dict[str, Block]:
    """The roundings of the released models, by the first that has each."""
    norm = RMSNorm(1e-6)
    return {
        "RMSNorm, Llama": norm,
        "RMSNorm, OLMo": replace(norm, scale_in_fp32=True),
        "RMSNorm, Gemma": replace(norm, unit_offset=True, scale_in_fp32=True),
    }
