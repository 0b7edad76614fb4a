"""Granite 4.0 (IBM 2025), the hybrids. New here: nine of ten layers have Mamba-2; the tenth has attention without
positions. Every layer has a shared expert, twice as wide as a routed one, beside the routed experts. Multipliers scale
embeddings, scores, branches and logits.

The multipliers are from memory of the published files. For h-small, so are the positions of the attention layers and
the heads of Mamba-2.
"""

from functools import partial
from math import inf
from typing import Any

from zoo.blocks import GLU, GQA, Layer, MoE, NoPE, RMSNorm, RoPE, SoftmaxTopK
from zoo.blocks.layer import Branch
from zoo.blocks.mamba2 import Mamba2
from zoo.hf.checkpoint_layout import Rearranged, Rename, stacked_gate_up
from zoo.hf.config import About, Config, ModelType, Size, reads
from zoo.hf.write_config import HEADS, ConfigFields, common_fields, fields_of, first, rope_fields
from zoo.model.decoder import Decoder

PACKED = "(gate_up hidden) dim -> gate_up hidden dim"
WEIGHTS = (
    *(Rename(f"attn.block.{name}", f"mamba.{name}") for name in ("A_log", "dt_bias", "D", "norm")),
    *(Rename(f"attn.block.{ours}", f"mamba.{theirs}") for ours, theirs in (("input", "in_proj"), ("conv", "conv1d"))),
    Rename("attn.block.o", "mamba.out_proj", mixer=Mamba2),
    Rename("ffn.block.router", "block_sparse_moe.router.layer"),
    stacked_gate_up("block_sparse_moe.input_linear.weight"),
    Rename("ffn.block.experts.down", "block_sparse_moe.output_linear.weight"),
    Rearranged(("ffn.block.shared.gate", "ffn.block.shared.up"), "shared_mlp.input_linear", PACKED),
    Rename("ffn.block.shared.down", "shared_mlp.output_linear"),
    Rearranged(("ffn.block.gate", "ffn.block.up"), "shared_mlp.input_linear", PACKED),
    Rename("ffn.block.down", "shared_mlp.output_linear"),
)


def decoder(*, mixers, mamba, attn, ffn, multiplier, eps=1e-5, **rest):
    """Returns the decoder. `mixers` holds "mamba" or "attention" for each layer. `multiplier` scales the output of
    every branch."""
    norm = RMSNorm(eps)
    ffn = Branch(ffn, pre=norm, multiplier=multiplier)
    kinds = {"mamba": mamba, "attention": attn}
    layers = {kind: Layer(Branch(mixer, pre=norm, multiplier=multiplier), ffn) for kind, mixer in kinds.items()}
    return Decoder(layers=tuple(layers[kind] for kind in mixers), norm=norm, **rest)


KINDS = {"mamba": "mamba", "linear_attention": "mamba", "attention": "attention", "full_attention": "attention"}
WIDTHS: dict[str, Any] = dict(num_key_value_heads=None, max_position_embeddings=2048, rms_norm_eps=1e-6)
WIDTHS |= dict(num_local_experts=8, num_experts_per_tok=2, shared_intermediate_size=1024)
WIDTHS |= dict(mamba_n_heads=128, mamba_n_groups=1, mamba_d_state=256, mamba_d_head="auto", mamba_d_conv=4)
WIDTHS |= dict(mamba_expand=2, head_dim=None, position_embedding_type=None, tie_word_embeddings=False, rope_theta=1e4)
MULTIPLIERS = dict(embed_scale="embedding_multiplier", logits_scaling="logits_scaling")
ONES = dict.fromkeys((*MULTIPLIERS.values(), "attention_multiplier", "residual_multiplier"), 1.0)
EXPECTED: dict[str, Any] = dict(hidden_act="silu", attention_bias=False, mamba_conv_bias=True, mamba_proj_bias=False)
EXPECTED |= dict(normalization_function="rmsnorm")
MAMBA = dict(heads="mamba_n_heads", groups="mamba_n_groups", state="mamba_d_state", conv="mamba_d_conv")


@reads(ModelType("granitemoehybrid", "GraniteMoeHybridForCausalLM"), expected=EXPECTED, **WIDTHS, **ONES)
def from_hf(config: Config) -> Decoder:
    config.unused("mamba_chunk_size", "init_method")
    shape = config.common() | {name: config.number(field) for name, field in MULTIPLIERS.items()}
    layers, heads = shape.pop("layers"), shape.pop("heads")
    attn = GQA(
        heads,
        kv_heads=config.optional("num_key_value_heads") or heads,
        head_dim=config.head_dim(),
        rope=_positions(config),
        scale=config.number("attention_multiplier"),
    )
    return decoder(
        mixers=[KINDS[kind] for kind in config.plan("layer_types", KINDS, default=["mamba"] * layers)],
        mamba=_mamba(config, shape["eps"]),
        attn=attn,
        ffn=_feed_forward(config),
        multiplier=config.number("residual_multiplier"),
        **shape,
    )


def _mamba(config, eps):
    limit = config.values.get("time_step_limit", [0.0, inf])  # bounds of the time step
    if limit not in ([0.0, inf], [0.0, {"__float__": "Infinity"}]):
        raise config.error(f"time_step_limit={limit!r} is not supported, only [0.0, Infinity]")
    config.unused("time_step_limit")
    widths = config.integers(**MAMBA)
    inner = config.integer("mamba_expand") * config.integer("hidden_size")
    automatic = config.get("mamba_d_head") == "auto"
    head_dim = inner // widths["heads"] if automatic else config.integer("mamba_d_head")
    if widths["heads"] * head_dim != inner:
        raise config.error(f"mamba_d_head={head_dim} must be mamba_expand * hidden_size / mamba_n_heads")
    return Mamba2(**widths, head_dim=head_dim, eps=eps)


def _positions(config):
    kind = config.get("position_embedding_type")
    if kind == "rope":
        return config.rope()
    if kind not in (None, "nope"):
        raise config.error(f"position_embedding_type={kind!r} is unknown; known: nope, rope")
    config.unused("rope_theta", "rope_scaling", "rope_parameters")
    return NoPE()


def _feed_forward(config):
    """Returns routed experts beside a shared expert. If there are no routed experts, returns a plain feed-forward."""
    shared = GLU(config.integer("shared_intermediate_size"))
    if not (experts := config.count("num_local_experts")):
        config.unused("intermediate_size", "num_experts_per_tok")
        return shared
    router = SoftmaxTopK(config.integer("num_experts_per_tok"))
    return MoE(experts, GLU(config.integer("intermediate_size")), router, shared=shared)


def to_hf(spec: Decoder) -> ConfigFields:
    mamba, moe, config = first(spec, Mamba2), first(spec, MoE), common_fields(spec) | rope_fields(spec)
    config["layer_types"] = ["mamba" if isinstance(layer.mixer, Mamba2) else "attention" for layer in spec.layers]
    config["position_embedding_type"] = "rope" if first(spec, RoPE) else "nope"
    config |= {field: float(getattr(spec, name)) for name, field in MULTIPLIERS.items()}
    config |= fields_of(spec, Branch, multiplier="residual_multiplier")
    config |= fields_of(spec, GQA, scale="attention_multiplier", **HEADS)
    config |= fields_of(spec, Mamba2, **MAMBA, head_dim="mamba_d_head")
    config |= {"mamba_expand": mamba.width // spec.dim} if mamba else {}
    if moe is None:
        return config | {"num_local_experts": 0} | fields_of(spec, GLU, hidden="shared_intermediate_size")
    config |= {"num_local_experts": moe.experts, "intermediate_size": moe.expert.width}
    config |= {"shared_intermediate_size": moe.shared.width} if moe.shared else {}
    return config | fields_of(spec, SoftmaxTopK, k="num_experts_per_tok")


def gguf_fields(spec: Decoder) -> ConfigFields:
    """Returns the .gguf metadata that only this architecture has. If `rope.scaling.finetuned` is false, attention has
    no positions."""
    branch = first(spec, Branch)
    return {"residual_scale": branch and branch.multiplier, "rope.scaling.finetuned": False}


def _released(dim, heads, kv_heads, mamba_heads, hidden, experts, k, logits_scaling):
    mamba = Mamba2(mamba_heads, head_dim=64, groups=1, state=128, conv=4, eps=1e-5)
    attn = GQA(heads, kv_heads, head_dim=128, rope=NoPE(), scale=1 / 128)
    return decoder(
        mixers=["attention" if i in (5, 15, 25, 35) else "mamba" for i in range(40)],
        mamba=mamba,
        attn=attn,
        ffn=MoE(experts, GLU(hidden), SoftmaxTopK(k), shared=GLU(2 * hidden)),
        multiplier=0.22,
        embed_scale=12.0,
        logits_scaling=logits_scaling,
        dim=dim,
        vocab=100_352,
        context=131_072,
        tied=True,
    )


_TINY = dict(dim=1536, heads=12, kv_heads=4, mamba_heads=48, hidden=512, experts=64, k=6, logits_scaling=6.0)
_SMALL = dict(dim=4096, heads=32, kv_heads=8, mamba_heads=128, hidden=768, experts=72, k=10, logits_scaling=16.0)
_size = partial(Size, released="2025-10", note="its multipliers are from memory")
ABOUT = About(
    "Granite 4.0",
    "IBM 2025",
    compared_with="llama3",
    licence="Apache-2.0",
    report="https://www.ibm.com/new/announcements/ibm-granite-4-0-hyper-efficient-high-performance-hybrid-models",
)
SIZES = {
    "granite4-h-tiny": _size("ibm-granite/granite-4.0-h-tiny", 6_939_037_248, _released(**_TINY)),
    "granite4-h-small": _size("ibm-granite/granite-4.0-h-small", 32_207_337_984, _released(**_SMALL)),
}
