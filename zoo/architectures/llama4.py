"""Llama 4 (Meta 2025), text part. New here: three of four layers attend within chunks of 8,192 tokens. The fourth has
full attention without positions, and its queries grow with the logarithm of their position. A token visits one routed
expert and a shared one; the router's weight multiplies the input of the routed expert. Scout normalises queries and
keys by a norm without weights. Maverick does not, and has experts only in every second layer."""

from zoo.architectures.smollm3 import position_fields, rotated
from zoo.blocks import GLU, GQA, InputScaledTopK, Layer, Llama3Scaling, LogTemperature, MoE, NoPE, RMSNorm, RoPE, pre
from zoo.hf.checkpoint_layout import GATE_UP, GLU_NAMES, PairedRows, Rearranged, Rename, Skipped
from zoo.hf.config import About, Config, ModelType, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields, fields_of, first, mixture_fields, window_fields
from zoo.model.decoder import Decoder

WEIGHTS = (
    *(PairedRows(f"attn.block.{x}", f"self_attn.{x}_proj", lambda attn: (0, attn.head_dim, 0)) for x in "qk"),
    Rename("ffn.block.router", "feed_forward.router"),
    *(Rename(f"ffn.block.{name}", f"feed_forward.{name}_proj") for name in GLU_NAMES),
    *(Rename(f"ffn.block.shared.{name}", f"feed_forward.shared_expert.{name}_proj") for name in GLU_NAMES),
    Rearranged(GATE_UP, "feed_forward.experts.gate_up_proj", "e dim (gate_up hidden) -> gate_up e hidden dim"),
    Rearranged("ffn.block.experts.down", "feed_forward.experts.down_proj", "e hidden dim -> e dim hidden"),
    Skipped("vision_model.*", "the vision tower"),
)


def decoder(
    *, layers, heads, kv_heads, head_dim, rope, chunk, qk_norm, temperature, moe, hidden, step, interval, eps, **rest
):
    """Returns the decoder. Every `step`-th layer has experts; the others have a feed-forward of width `hidden`. Every
    `interval`-th layer has full attention."""
    norm, unit = RMSNorm(eps), RMSNorm(eps, weight=False) if qk_norm else None
    local = GQA(heads, kv_heads, head_dim, rope=rope, chunk=chunk, qk_norm=unit)
    everywhere = GQA(heads, kv_heads, head_dim, rope=NoPE(), temperature=temperature)

    def layer(i):
        attn = everywhere if i % interval == interval - 1 else local
        return Layer(pre(norm, attn), pre(norm, moe if i % step == step - 1 else GLU(hidden)))

    return Decoder(layers=tuple(map(layer, range(layers))), norm=norm, **rest)


TEXT = ModelType("llama4_text", "Llama4ForCausalLM")
WRAPPER = ModelType("llama4", "Llama4ForConditionalGeneration")
HEADS = dict(num_key_value_heads=8, head_dim=128, use_qk_norm=True, max_position_embeddings=131_072)
REACH = dict(attention_chunk_size=8192, no_rope_layer_interval=4)
TEMPERATURE = dict(attn_temperature_tuning=True, attn_scale=0.1, floor_scale=8192)
EXPERTS = dict(num_local_experts=16, num_experts_per_tok=1, interleave_moe_layer_step=1, intermediate_size_mlp=16_384)
SHAPE = dict(step="interleave_moe_layer_step", interval="no_rope_layer_interval", hidden="intermediate_size_mlp")
OTHERS = dict(rms_norm_eps=1e-5, rope_theta=5e5, tie_word_embeddings=False)
EXPECTED = dict(hidden_act="silu", attention_bias=False)


@reads(TEXT, WRAPPER, expected=EXPECTED, **HEADS, **REACH, **TEMPERATURE, **EXPERTS, **OTHERS)
def from_hf(config: Config) -> Decoder:
    config.neutral(router_jitter_noise=0.0, for_llm_compressor=False)
    shape = config.dense()
    rope, qk_norm, expert = shape["rope"], config.flag("use_qk_norm"), GLU(shape["hidden"])
    if qk_norm and rope.scaling and rope.scaling.gain != 1.0:
        gain = f"the rotation's factor of {rope.scaling.gain:g}"  # only a factor of 1 commutes with the norm
        raise config.error(f"{gain} with use_qk_norm is not supported: this norm follows the rotation and undoes it")
    router = InputScaledTopK(config.integer("num_experts_per_tok"))
    shape |= dict(chunk=config.optional("attention_chunk_size"), qk_norm=qk_norm, temperature=_temperature(config))
    shape |= dict(moe=MoE(config.integer("num_local_experts"), expert, router, shared=expert))
    spec = decoder(**shape | config.integers(**SHAPE))
    if config.values.get("no_rope_layers") == []:
        config.unused("no_rope_layers")  # an empty list means the same as no field
    else:
        config.agrees("no_rope_layers", rotated(spec))
    if config.values.get("moe_layers") is not None:
        config.expect(moe_layers=_sparse(spec))
    return spec


def _temperature(config):
    """Returns the scaling of queries by position; None if off. The switch is a flag or, in older files, a number."""
    switch, scale, step = "attn_temperature_tuning", config.number("attn_scale"), config.integer("floor_scale")
    tuned = config.flag(switch) if isinstance(config.get(switch), bool) else config.integer(switch) > 0
    return LogTemperature(scale, step, from_one=True) if tuned else None


def _sparse(spec):
    return [i for i, layer in enumerate(spec.layers) if layer.mixture]


def to_hf(spec: Decoder) -> ConfigFields:
    config = dense_fields(spec) | window_fields(spec) | position_fields(spec)
    config |= {"interleave_moe_layer_step": [*_sparse(spec), len(spec.layers)][0] + 1}
    attn = first(spec, GQA)
    config |= {"use_qk_norm": bool(attn and attn.qk_norm), "attention_chunk_size": attn and attn.chunk}
    config["attn_temperature_tuning"] = first(spec, LogTemperature) is not None
    config |= fields_of(spec, LogTemperature, scale="attn_scale", step="floor_scale")
    if dense := next((layer for layer in spec.layers if not layer.mixture), None):
        config |= fields_of(dense, GLU, hidden="intermediate_size_mlp")
    config |= mixture_fields(spec, experts="num_local_experts", hidden="intermediate_size")
    return config | fields_of(spec, InputScaledTopK, k="num_experts_per_tok")


def _released(experts, **rest):
    rest |= dict(dim=5120, layers=48, heads=40, kv_heads=8, head_dim=128, vocab=202_048, eps=1e-5)
    rest |= dict(chunk=8192, temperature=LogTemperature(0.1, 8192, from_one=True), hidden=16_384, interval=4)
    return decoder(moe=MoE(experts, GLU(8192), InputScaledTopK(1), shared=GLU(8192)), **rest)


_STRETCHED = RoPE(5e5, Llama3Scaling(16, 8192, low=1.0, high=1.0))
_109B = _released(16, rope=_STRETCHED, qk_norm=True, step=1, context=10_485_760)
_400B = _released(128, rope=RoPE(5e5), qk_norm=False, step=2, context=1_048_576)
ABOUT = About(
    "Llama 4",
    "Meta 2025",
    compared_with="llama3",
    licence="Llama 4 Community",
    report="https://ai.meta.com/blog/llama-4-multimodal-intelligence/",
    left_out="vision",
)
SIZES = {
    "llama4-scout-109b": Size("meta-llama/Llama-4-Scout-17B-16E-Instruct", 107_769_861_120, _109B, released="2025-04"),
    "llama4-maverick-400b": Size(
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct", 400_711_848_960, _400B, released="2025-04"
    ),
}
