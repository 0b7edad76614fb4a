"""Qwen3-Next (Qwen Team 2025). New here: three layers of Gated DeltaNet, with a state of fixed size, for each layer of
attention. Attention has a gate on its output and rotates a quarter of each head. Norms multiply by 1 + w. There are 512
experts and a shared expert, which has its own gate."""

from zoo.blocks import GLU, GQA, Gated, Layer, MoE, RMSNorm, RoPE, SoftmaxTopK, pre
from zoo.blocks.delta_rule import GatedDeltaNet
from zoo.hf.checkpoint_layout import GLU_NAMES, PackedRows, Rename, Skipped
from zoo.hf.config import About, Config, ModelType, Size, layer_types, reads
from zoo.hf.write_config import ConfigFields, dense_fields, fields_of
from zoo.model.decoder import Decoder


def _query_and_gate(attn):
    return (attn.heads * attn.head_dim,), (attn.heads * attn.value_dim,)


# The part of the layout that Qwen3.5 shares.
SHARED_WEIGHTS = (
    PackedRows(("attn.block.q", "attn.block.gate"), "self_attn.q_proj", "heads", _query_and_gate, mixer=GQA),
    *(Rename(f"attn.block.{name}", f"linear_attn.{name}") for name in ("A_log", "dt_bias", "norm")),
    Rename("attn.block.conv", "linear_attn.conv1d"),
    Rename("attn.block.o", "linear_attn.out_proj", mixer=GatedDeltaNet),
    Rename("ffn.block.shared.gate", "mlp.shared_expert_gate"),
    *(Rename(f"ffn.block.shared.block.{name}", f"mlp.shared_expert.{name}_proj") for name in GLU_NAMES),
    Skipped("mtp.*", "the multi-token prediction layer"),
)
WEIGHTS = (
    PackedRows(
        ("attn.block.qkv", "attn.block.gate"),
        "linear_attn.in_proj_qkvz",
        "key_heads",
        lambda mixer: (mixer.mixed_widths, mixer.mixed_widths[-1:]),
        mixer=GatedDeltaNet,
    ),
    PackedRows(
        ("attn.block.beta", "attn.block.decay"),
        "linear_attn.in_proj_ba",
        "key_heads",
        lambda mixer: ((mixer.value_heads,), (mixer.value_heads,)),
    ),
    *SHARED_WEIGHTS,
)


def decoder(*, types, heads, kv_heads, head_dim, rope, linear, ffn, eps=1e-6, **rest):
    """Returns the decoder. `types` holds the type of each layer's mixer, and `linear` the sizes of Gated DeltaNet."""
    norm = RMSNorm(eps, unit_offset=True, scale_in_fp32=True)
    mixers = {
        "linear_attention": GatedDeltaNet(**linear, norm=RMSNorm(eps)),
        "full_attention": GQA(heads, kv_heads, head_dim, rope=rope, qk_norm=norm, gate="element"),
    }
    layers = {name: Layer(pre(norm, mixer), pre(norm, ffn)) for name, mixer in mixers.items()}
    return Decoder(layers=tuple(layers[name] for name in types), norm=norm, **rest)


def mixture(hidden, shared, experts, k, renormalise=True):
    return MoE(experts, GLU(hidden), SoftmaxTopK(k, renormalise), shared=Gated(GLU(shared)))


def pattern(layers, interval=4):
    """Returns the type of each layer's mixer. Every `interval`-th layer has full attention."""
    return ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(layers)]


LINEAR = dict(key_heads="linear_num_key_heads", value_heads="linear_num_value_heads")
LINEAR |= dict(key_dim="linear_key_head_dim", value_dim="linear_value_head_dim", conv="linear_conv_kernel_dim")
EXPERTS = dict(hidden="moe_intermediate_size", shared="shared_expert_intermediate_size", experts="num_experts")
ROUTER = dict(k="num_experts_per_tok", renormalise="norm_topk_prob")
EXPECTED = dict(hidden_act="silu", attention_bias=False)
DEFAULTS = dict(rope_theta=1e4, rms_norm_eps=1e-6, max_position_embeddings=32_768, tie_word_embeddings=False)
DEFAULTS |= dict(head_dim=256, linear_num_key_heads=16, linear_num_value_heads=32, linear_key_head_dim=128)
DEFAULTS |= dict(linear_value_head_dim=128, linear_conv_kernel_dim=4, full_attention_interval=4)


def read_mixers(config):
    """Returns those arguments of `decoder` that describe the mixers and their pattern."""
    shape = config.common()
    default = pattern(shape.pop("layers"), config.integer("full_attention_interval"))
    types = config.plan("layer_types", ("linear_attention", "full_attention"), default)
    shape |= config.integers(kv_heads="num_key_value_heads", head_dim="head_dim")
    return shape | {"types": types, "rope": config.rope(fraction=0.25), "linear": config.integers(**LINEAR)}


def mixer_fields(spec: Decoder) -> ConfigFields:
    """Returns the config fields that `read_mixers` reads."""
    linear = fields_of(spec, GatedDeltaNet, **LINEAR) | fields_of(spec, RoPE, fraction="partial_rotary_factor")
    return dense_fields(spec) | linear | {"layer_types": layer_types(spec)}


KIND = ModelType("qwen3_next", "Qwen3NextForCausalLM")
MOE = dict(num_key_value_heads=2, num_experts=512, num_experts_per_tok=10, norm_topk_prob=True)
MOE |= dict(moe_intermediate_size=512, shared_expert_intermediate_size=512)


@reads(KIND, expected=EXPECTED | dict(decoder_sparse_step=1, mlp_only_layers=[]), **DEFAULTS, **MOE)
def from_hf(config: Config) -> Decoder:
    config.unused("intermediate_size")  # there are no dense layers
    shape = read_mixers(config)
    experts = mixture(**config.integers(**EXPERTS), **config.typed(SoftmaxTopK, **ROUTER))
    return decoder(**shape, ffn=experts)


def to_hf(spec: Decoder) -> ConfigFields:
    return mixer_fields(spec) | expert_fields(spec)


def expert_fields(spec: Decoder) -> ConfigFields:
    """Returns the config fields for the mixture of experts."""
    experts = fields_of(spec, MoE, experts="num_experts") | fields_of(spec, GLU, hidden="moe_intermediate_size")
    shared = next((part.width for part in spec.walk() if isinstance(part, Gated)), None)
    config = experts | fields_of(spec, SoftmaxTopK, **ROUTER)
    return config | ({"shared_expert_intermediate_size": shared} if shared else {})


_LINEAR = dict(key_heads=16, value_heads=32, key_dim=128, value_dim=128, conv=4)
_80B = decoder(
    **dict(dim=2048, types=pattern(48), heads=16, kv_heads=2, head_dim=256, linear=_LINEAR),
    **dict(rope=RoPE(1e7, fraction=0.25), ffn=mixture(512, 512, experts=512, k=10), vocab=151_936, context=262_144),
)
ABOUT = About(
    "Qwen3-Next",
    "Qwen Team 2025",
    compared_with="qwen3",
    licence="Apache-2.0",
    report="https://huggingface.co/Qwen/Qwen3-Next-80B-A3B-Instruct",
    left_out="multi-token prediction",
)
SIZES = {"qwen3-next-80b-a3b": Size("Qwen/Qwen3-Next-80B-A3B-Instruct", 79_674_391_296, _80B, released="2025-09")}
