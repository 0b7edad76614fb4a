"""Kimi K2 (Kimi Team 2025) and Moonlight (Liu et al. 2025). New here: only sizes differ from DeepSeek-V3. There are
fewer heads, a single group of experts (384 in Kimi K2) and one dense layer. Moonlight has no latent for its queries.

Both were released with DeepSeek-V3's code and in its layout, so deepseek_v3.py reads and writes their config.json.
Moonlight's has the model_type deepseek_v3. Kimi K2's has kimi_k2, which the reference does not know.
"""

from zoo.architectures.deepseek_v3 import WEIGHTS as WEIGHTS
from zoo.architectures.deepseek_v3 import attention, decoder
from zoo.architectures.deepseek_v3 import from_hf as from_hf
from zoo.architectures.deepseek_v3 import to_hf as to_hf
from zoo.blocks import GLU, GroupedSigmoidTopK, MoE, RoPE, YarnScaling, yarn_gain
from zoo.hf.config import About, Size


def mixture(*, experts, hidden, k, scale, shared):
    return MoE(experts, GLU(hidden), GroupedSigmoidTopK(k, groups=1, keep=1, scale=scale), shared=GLU(shared * hidden))


_HEADS = dict(kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128)
_ROPE = RoPE(5e4, YarnScaling(factor=32, original=4096, gain=1.0, fast=1.0, slow=1.0))
_1T = dict(dim=7168, layers=61, dense=1, hidden=18_432, vocab=163_840, context=131_072)
_1T |= dict(attn=attention(**_HEADS, heads=64, q_rank=1536, rope=_ROPE, gain=yarn_gain(32)))
_1T |= dict(moe=mixture(experts=384, hidden=2048, k=8, scale=2.827, shared=1))
_16B = dict(dim=2048, layers=27, dense=1, hidden=11_264, vocab=163_840, context=8192, eps=1e-5)
_16B |= dict(attn=attention(**_HEADS, heads=16, q_rank=None, rope=RoPE(5e4), gain=1.0))
_16B |= dict(moe=mixture(experts=64, hidden=1408, k=6, scale=2.446, shared=2))
ABOUT = About(
    "Kimi K2",
    "Kimi Team 2025",
    compared_with="deepseek-v3",
    licence="Modified MIT (Moonlight: MIT)",
    report="https://arxiv.org/abs/2507.20534",
)
BEST_KNOWN = "kimi-k2-1t"
SIZES = {
    "moonlight-16b-a3b": Size("moonshotai/Moonlight-16B-A3B", 15_960_110_208, decoder(**_16B), released="2025-02"),
    "kimi-k2-1t": Size("moonshotai/Kimi-K2-Instruct", 1_026_408_232_448, decoder(**_1T), released="2025-07"),
}
