"""DeepSeek-V3 (DeepSeek-AI 2024). New here: multi-head latent attention. A shared expert, and 256 routed experts in 8
groups, chosen by sigmoid scores with a correction bias. The first three layers are dense. YaRN's gain is on the scores,
not on cos and sin."""

from functools import partial

from zoo.blocks import GLU, MLA, GroupedSigmoidTopK, Layer, MoE, RMSNorm, RoPE, YarnScaling, pre, yarn_gain
from zoo.hf.checkpoint_layout import PairedRows, Rename, Skipped
from zoo.hf.config import About, Config, ModelType, Remote, Size, reads
from zoo.hf.write_config import (
    ConfigFields,
    common_fields,
    fields_of,
    first,
    layers_before_experts,
    mixture_fields,
    rope_fields,
    solve,
)
from zoo.model.decoder import Decoder


def split(attn):
    """Returns the numbers of rows in a head: before the rotary rows, rotary, and after them."""
    return attn.nope_dim, attn.rope_dim, 0


WEIGHTS = (
    Rename("attn.block.q.down", "self_attn.q_a_proj"),
    Rename("attn.block.q.norm", "self_attn.q_a_layernorm"),
    PairedRows("attn.block.q.up", "self_attn.q_b_proj", split),
    PairedRows("attn.block.q", "self_attn.q_proj", split),
    PairedRows("attn.block.kv_down", "self_attn.kv_a_proj_with_mqa", lambda attn: (attn.kv_rank, attn.rope_dim, 0)),
    Rename("attn.block.kv_norm", "self_attn.kv_a_layernorm"),
    Rename("attn.block.kv_up", "self_attn.kv_b_proj"),
    Rename("ffn.block.router.correction", "mlp.gate.e_score_correction_bias"),
    Skipped("model.layers.{layers}.*", "the multi-token prediction layer"),
)


def decoder(*, layers, dense, attn, hidden, moe, eps=1e-6, **rest):
    norm = RMSNorm(eps)
    first, later = (Layer(pre(norm, attn), pre(norm, ffn)) for ffn in (GLU(hidden), moe))
    return Decoder(layers=(first,) * dense + (later,) * (layers - dense), norm=norm, **rest)


def attention(*, nope_dim, rope_dim, gain, kind=MLA, **rest):
    norm = RMSNorm(1e-6)  # the norms of the latents do not use the eps of the config
    return kind(nope_dim=nope_dim, rope_dim=rope_dim, norm=norm, scale=score_scale(nope_dim, rope_dim, gain), **rest)


def score_scale(nope_dim, rope_dim, gain):
    return (nope_dim + rope_dim) ** -0.5 * gain * gain


REMOTE = Remote("deepseek", "DeepseekV3", publishers=("deepseek-ai", "moonshotai"))
# Models of type kimi_k2 compute the same.
KINDS = [ModelType(name, "DeepseekV3ForCausalLM", remote=REMOTE) for name in ("deepseek_v3", "kimi_k2")]
WIDTHS = dict(num_key_value_heads=128, q_lora_rank=1536, max_position_embeddings=4096)
EXPECTED = dict(hidden_act="silu", attention_bias=False, rope_interleave=True, moe_layer_freq=1)
EXPECTED |= dict(scoring_func="sigmoid", topk_method="noaux_tc", norm_topk_prob=True)
ATTENTION = dict(heads="num_attention_heads", q_rank="q_lora_rank", kv_rank="kv_lora_rank")
ATTENTION |= dict(nope_dim="qk_nope_head_dim", rope_dim="qk_rope_head_dim", v_dim="v_head_dim")
EXPERTS = dict(experts="n_routed_experts", hidden="moe_intermediate_size", shared="n_shared_experts")
ROUTER = dict(k="num_experts_per_tok", groups="n_group", keep="topk_group", scale="routed_scaling_factor")


@reads(*KINDS, expected=EXPECTED, **WIDTHS, rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=False)
def from_hf(config: Config) -> Decoder:
    attn = attention(**read_attention(config))
    config.expect(head_dim=attn.rope_dim, qk_head_dim=attn.nope_dim + attn.rope_dim)
    return decoder(**read_shape(config), attn=attn)


def read_shape(config, router=GroupedSigmoidTopK):
    """Returns the arguments of `decoder`, except `attn`."""
    shape = config.common() | config.integers(hidden="intermediate_size")
    config.expect(num_key_value_heads=shape.pop("heads"))
    dense = config.count("first_k_dense_replace", most=shape["layers"])
    return shape | {"dense": dense, "moe": config.mixture(router(**config.typed(router, **ROUTER)), **EXPERTS)}


def read_attention(config):
    """Returns the arguments of `attention`."""
    gain = yarn_gain(config.rope_field("factor") or 1, config.rope_field("mscale_all_dim") or 0)
    return config.typed(MLA, **ATTENTION) | {"rope": config.rope(), "gain": gain}


def to_hf(spec: Decoder, unscaled: ConfigFields | None = None) -> ConfigFields:
    """Returns the config of a spec. `unscaled` is the `rope_scaling` to write if the spec has no scaling."""
    config = common_fields(spec) | rope_fields(spec, unscaled, mscale_all_dim(first(spec, MLA)))
    config |= fields_of(spec, MLA, **ATTENTION) | fields_of(spec, MLA, heads="num_key_value_heads")
    config |= fields_of(spec, GLU, hidden="intermediate_size") | mixture_fields(spec, **EXPERTS)
    config["first_k_dense_replace"] = layers_before_experts(spec)
    return config | fields_of(spec, GroupedSigmoidTopK, **ROUTER)


def mscale_all_dim(attn):
    """Returns the mscale_all_dim (a gain on the scores) from which `from_hf` computes the scale of this attention."""
    factor = getattr(getattr(attn and attn.rope, "scaling", None), "factor", 1)
    if factor <= 1 or attn.scale is None:
        return None
    widths = attn.nope_dim, attn.rope_dim
    guess = ((attn.scale / score_scale(*widths, gain=1)) ** 0.5 - 1) / (yarn_gain(factor) - 1)
    if guess <= 0:
        return None
    return solve(lambda mscale: score_scale(*widths, yarn_gain(factor, mscale)), attn.scale, guess)


_ROPE = RoPE(1e4, YarnScaling(factor=40, original=4096, gain=1.0))
HEADS = dict(heads=128, q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128, rope=_ROPE)
_MOE = MoE(256, GLU(2048), GroupedSigmoidTopK(k=8, groups=8, keep=4, scale=2.5), shared=GLU(2048))
V3 = dict(dim=7168, layers=61, dense=3, hidden=18_432, moe=_MOE, vocab=129_280, context=163_840)
_671B = decoder(**V3, attn=attention(**HEADS, gain=yarn_gain(40)))
ABOUT = About(
    "DeepSeek-V3",
    "DeepSeek-AI 2024",
    compared_with="mixtral",
    licence="DeepSeek Model",
    report="https://arxiv.org/abs/2412.19437",
    left_out="multi-token prediction",
)
_size = partial(Size, released="2024-12", stated_context=131_072)
SIZES = {"deepseek-v3-671b": _size("deepseek-ai/DeepSeek-V3", 671_026_419_200, _671B)}
