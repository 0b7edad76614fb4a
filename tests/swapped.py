"""Swapped tiny models: some that a published config can describe, and some that none can."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import zoo
from zoo.blocks import yarn_gain

DENSE, MIXED, LATENT, SANDWICH, SINKS, LLAMA = (
    zoo.spec(name, tiny=True)
    for name in ("qwen3-0.6b", "qwen3-30b-a3b", "deepseek-v3-671b", "gemma3-1b", "gpt-oss-20b", "llama3-8b")
)
MISTRAL, NO_POSITIONS = (zoo.spec(name, tiny=True) for name in ("mistral-small-3.1-24b", "smollm3-3b"))
GAIN = yarn_gain(40, 0.707)
LONG = zoo.spec("phi4-mini-3.8b", tiny=True)
LONGROPE = zoo.LongRoPE(short=(1.0, 1.5) * 4, long=(2.0, 4.0) * 4, original=32, gain=1.25)


def change(spec: zoo.Decoder, kind: type[zoo.Spec], **values: Any) -> zoo.Decoder:
    """Returns `spec` with these fields in every block of a kind."""
    return zoo.swap(spec, kind, lambda part: replace(part, **values))


# Description of the swap -> the model_type that describes the model, and the model.
DESCRIBABLE: dict[str, tuple[str, zoo.Decoder]] = {
    "a window for Mistral": ("mistral", change(MISTRAL, zoo.GQA, window=7)),
    "experts for Qwen3": ("qwen3_moe", zoo.swap(DENSE, zoo.GLU, MIXED.layers[0].ffn.block)),
    "no positions for Llama": ("smollm3", zoo.swap(LLAMA, zoo.RoPE, zoo.NoPE())),
    "another interval": ("smollm3", replace(NO_POSITIONS, layers=NO_POSITIONS.layers[2:] * 2)),
    "raw probabilities": ("qwen3_moe", change(MIXED, zoo.SoftmaxTopK, renormalise=False)),
    "queries without a latent": ("deepseek_v3", change(LATENT, zoo.MLA, q_rank=None)),
    "dense layers alone": ("deepseek_v3", replace(LATENT, layers=LATENT.layers[:3])),
    "experts in every layer": ("deepseek_v3", replace(LATENT, layers=LATENT.layers[3:] * 4)),
    "latents for Llama": ("deepseek_v3", zoo.swap(LLAMA, zoo.GQA, LATENT.layers[0].mixer)),
    "a shared expert of two": ("deepseek_v3", change(LATENT, zoo.MoE, shared=zoo.GLU(192))),
    "another gain on the scores": ("deepseek_v3", change(LATENT, zoo.MLA, scale=48**-0.5 * GAIN * GAIN)),
    "another gain on cos and sin": ("gpt_oss", change(SINKS, zoo.YarnScaling, gain=1.25)),
    "both gains": ("deepseek_v3", change(LATENT, zoo.YarnScaling, gain=1.25)),
    "another clamp": ("gpt_oss", change(SINKS, zoo.ClampedSwiGLU, alpha=1.5, limit=0.5)),
    "another scale": ("gemma3_text", change(SANDWICH, zoo.GQA, scale=30**-0.5)),
    "biases in attention": ("llama", change(LLAMA, zoo.GQA, bias=True)),
    "biases in the feed-forward": ("llama", change(LLAMA, zoo.GLU, bias=True)),
    "other factors": ("phi3", change(LONG, zoo.LongRoPE, short=(1.0, 1.5) * 3, original=32)),
    "another gain than its context's": ("phi3", change(LONG, zoo.LongRoPE, original=32, gain=1.5)),
    "factors and biases for Llama": ("llama", change(change(LLAMA, zoo.RoPE, scaling=LONGROPE), zoo.GQA, bias=True)),
    "another stretch": ("llama", change(LLAMA, zoo.RoPE, scaling=zoo.YarnScaling(factor=4, original=32, gain=1.0))),
}

# Description of the swap -> the model, the nearest model_type, and the difference.
INDESCRIBABLE: dict[str, tuple[zoo.Decoder, str, str]] = {
    "a window": (change(DENSE, zoo.GQA, window=7), "qwen3", "layers[0].attn.block: GQA.window is 7 here, None there"),
    "a window in one layer": (
        zoo.swap_layers(LLAMA, lambda i: i == 1, zoo.GQA, lambda attn: replace(attn, window=7)),
        "llama",
        "layers[1].attn.block: GQA.window is 7 here, None there",
    ),
    "no sinks": (
        change(SINKS, zoo.GQA, sinks=False),
        "gpt_oss",
        "layers[0].attn.block: GQA.sinks is False here, True there",
    ),
    "another placement": (
        zoo.swap(DENSE, zoo.Branch, lambda branch: zoo.post(branch.pre, branch.block)),
        "qwen2",
        "layers[0]: Layer.attn is PostNorm here, Branch there",
    ),
    "another activation": (change(DENSE, zoo.GLU, act=zoo.GeGLU()), "qwen3", "GLU.act is GeGLU here, SwiGLU there"),
    "half a shared expert": (
        change(LATENT, zoo.MoE, shared=zoo.GLU(48)),
        "deepseek_v3",
        "layers[3].ffn.block.shared: GLU.hidden is 48 here, 96 there",
    ),
    "a scale that is no root": (
        change(SANDWICH, zoo.GQA, scale=0.1234),
        "gemma3_text",
        "GQA.scale is 0.1234 here, 0.1",
    ),
    "a scale of next to nothing": (change(SANDWICH, zoo.GQA, scale=1e-200), "gemma3_text", "GQA.scale is 1e-200 here"),
    "other factors in one layer": (
        zoo.swap_layers(LONG, lambda i: i == 1, zoo.LongRoPE, lambda scaling: replace(scaling, short=(2.0,) * 6)),
        "phi3",
        "layers[1].attn.block.rope.scaling: LongRoPE.short is (2.0, 2.0, 2.0, 2.0, 2.0, 2.0) here, (1.0, ",
    ),
    "one norm apart": (
        replace(DENSE, norm=zoo.RMSNorm(1e-3)),
        "qwen3",
        "attn.pre: RMSNorm.eps is 1e-06 here, 0.001 there",
    ),
    "untied widths": (replace(SANDWICH, embed_scale=2.0), "gemma3_text", "Decoder.embed_scale is 2.0 here, 8.0 there"),
    "no context": (replace(DENSE, context=None), "qwen3", "Decoder.context is None here, 40960 there"),
}
