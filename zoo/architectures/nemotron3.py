"""Nemotron 3 (NVIDIA 2025). New here: each layer has a single branch: Mamba-2, attention without positions, or experts.
An expert is two matrices with squared ReLU between them. In Super and Ultra, experts work in a latent that is narrower
than the model.

The reference clamps Mamba-2's time steps to at least `time_step_min`, but only in passes of several tokens. It ignores
`time_step_limit` and `rope_theta`, which the published files contain.
"""

from reprlib import repr as brief
from typing import Any

from zoo.blocks import GQA, MLP, GroupedSigmoidTopK, Layer, MoE, NoPE, ReLUSquared, RMSNorm, pre
from zoo.blocks.mamba2 import Mamba2
from zoo.hf.checkpoint_layout import LayerPrefix, Rename, Skipped, Stacked
from zoo.hf.config import MAX_LAYERS, About, Config, ModelType, Remote, Size, reads
from zoo.hf.write_config import ConfigFields, fields_of, first
from zoo.model.decoder import Decoder

WEIGHTS = (
    LayerPrefix("backbone.layers."),
    Rename("embed", "backbone.embeddings"),
    Rename("norm", "backbone.norm_f"),
    *(Rename(f"{branch}.pre", "norm") for branch in ("attn", "ffn")),
    *(Rename(f"attn.block.{name}", f"mixer.{name}") for name in ("A_log", "dt_bias", "D", "norm")),
    *(Rename(f"attn.block.{ours}", f"mixer.{theirs}") for ours, theirs in (("input", "in_proj"), ("conv", "conv1d"))),
    Rename("attn.block.o", "mixer.out_proj", mixer=Mamba2),
    *(Rename(f"attn.block.{name}", f"mixer.{name}_proj") for name in ("q", "k", "v", "o")),
    Rename("ffn.block.router", "mixer.gate"),
    Rename("ffn.block.router.correction", "mixer.gate.e_score_correction_bias"),
    Rename("ffn.block.latent_in", "mixer.fc1_latent_proj"),
    Rename("ffn.block.latent_out", "mixer.fc2_latent_proj"),
    *(Rename(f"ffn.block.shared.{name}", f"mixer.shared_experts.{name}_proj") for name in ("up", "down")),
    *(Stacked(f"ffn.block.experts.{name}", f"mixer.experts.{{e}}.{name}_proj.weight") for name in ("up", "down")),
    *(Rename(f"ffn.block.{name}", f"mixer.{name}_proj") for name in ("up", "down")),
    Skipped("mtp.*", "the multi-token prediction layer"),
)


def decoder(*, pattern, mamba, attn, moe, mlp=None, eps=1e-5, **rest):
    """Returns the decoder. `pattern` has a letter for each layer: M for Mamba-2, * for attention, E for experts, - for
    an MLP."""
    norm = RMSNorm(eps, scale_in_fp32=True)

    def layer(letter):
        branch = pre(norm, {"M": mamba, "*": attn, "E": moe, "-": mlp}[letter])
        return Layer(branch, None) if letter in "M*" else Layer(None, branch)

    return Decoder(layers=tuple(map(layer, pattern)), norm=norm, **rest)


def mixture(experts, hidden, shared, router, latent=None):
    return MoE(experts, MLP(hidden, ReLUSquared()), router, shared=MLP(shared, ReLUSquared()), latent=latent)


LETTERS = {"M": Mamba2, "*": GQA, "E": MoE, "-": MLP}
KINDS = {"mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*", "moe": "E", "mlp": "-"}
KIND = ModelType("nemotron_h", "NemotronHForCausalLM", remote=Remote("nemotron_h", "NemotronH", ("nvidia",)))
WIDTHS: dict[str, Any] = dict(intermediate_size=21_504, max_position_embeddings=4096)
WIDTHS |= dict(num_key_value_heads=8, head_dim=128, layer_norm_epsilon=1e-5)
WIDTHS |= dict(mamba_num_heads=128, mamba_head_dim=64, n_groups=8, ssm_state_size=128, conv_kernel=4)
WIDTHS |= dict(time_step_min=1e-3, n_routed_experts=8, moe_intermediate_size=7688, moe_latent_size=None)
WIDTHS |= dict(moe_shared_expert_intermediate_size=7688, num_experts_per_tok=2, n_group=1, topk_group=1)
LAYERS = dict(layers_block_type=None, hybrid_override_pattern="ME*-", routed_scaling_factor=1.0)
EXPECTED: dict[str, Any] = dict(attention_bias=False, mlp_bias=False, use_bias=False)
EXPECTED |= dict(mamba_proj_bias=False, use_conv_bias=True)
EXPECTED |= dict(mlp_hidden_act="relu2", mamba_hidden_act="silu", mamba_ssm_cache_dtype="float32")
EXPECTED |= dict(norm_topk_prob=True, n_shared_experts=1, sliding_window=None, tie_word_embeddings=False)
EXPECTED |= dict(residual_in_fp32=False)
MODEL = dict(vocab="vocab_size", dim="hidden_size", context="max_position_embeddings")
MAMBA = dict(heads="mamba_num_heads", head_dim="mamba_head_dim", groups="n_groups", state="ssm_state_size")
MAMBA |= dict(conv="conv_kernel", eps="layer_norm_epsilon")
HEADS: dict[str, Any] = dict(heads="num_attention_heads", head_dim="head_dim")
ROUTER = dict(k="num_experts_per_tok", groups="n_group", keep="topk_group", scale="routed_scaling_factor")
# Fields for kernels, initialisation and multi-token prediction, and for features that this attention does not have.
UNUSED = (
    "chunk_size expand time_step_floor time_step_limit time_step_max use_mamba_kernels moe_shared_expert_overlap "
    "rescale_prenorm_residual mtp_hybrid_override_pattern mtp_layers_block_type num_logits_to_keep rope_theta"
).split()


@reads(KIND, expected=EXPECTED, **WIDTHS, **LAYERS)
def from_hf(config: Config) -> Decoder:
    config.unused(*UNUSED)
    eps, pattern = config.number("layer_norm_epsilon"), _pattern(config)
    config.neutral(norm_eps=eps)
    mamba = Mamba2(**config.typed(Mamba2, **MAMBA), min_step=config.number("time_step_min"))
    heads: dict[str, Any] = config.integers(**HEADS)
    attn = GQA(kv_heads=config.optional("num_key_value_heads") or heads["heads"], rope=NoPE(), **heads)
    moe = mixture(
        config.integer("n_routed_experts"),
        config.integer("moe_intermediate_size"),
        config.integer("moe_shared_expert_intermediate_size"),
        GroupedSigmoidTopK(**config.typed(GroupedSigmoidTopK, **ROUTER)),
        config.optional("moe_latent_size"),
    )
    mlp = MLP(config.integer("intermediate_size"), ReLUSquared())
    return decoder(pattern=pattern, mamba=mamba, attn=attn, moe=moe, mlp=mlp, eps=eps, **config.integers(**MODEL))


def _pattern(config):
    """Returns a letter for each layer. A list of names (newer files) takes precedence over a string of letters."""
    listed = config.get("layers_block_type") is not None
    name, known = ("layers_block_type", KINDS) if listed else ("hybrid_override_pattern", LETTERS)
    given = config.get(name)
    if not isinstance(given, list if listed else str) or not 0 < len(given) <= MAX_LAYERS:
        raise config.error(f"{name} must say the kind of each of 1 to {MAX_LAYERS} layers, got {brief(given)}")
    for i, kind in enumerate(given):
        if kind not in known:
            raise config.error(f"{name}[{i}]={brief(kind)} is unknown; known: {', '.join(known)}")
    config.unused("hybrid_override_pattern")
    if "num_hidden_layers" in config.values and config.integer("num_hidden_layers") != len(given):
        raise config.error(f"num_hidden_layers={config.integer('num_hidden_layers')} for {len(given)} kinds of layers")
    return "".join(KINDS[kind] for kind in given) if listed else given


def to_hf(spec: Decoder) -> ConfigFields:
    moe = first(spec, MoE)
    mlp = next((layer.feed_forward for layer in spec.layers if isinstance(layer.feed_forward, MLP)), None)
    config: ConfigFields = {ours: getattr(spec, name) for name, ours in MODEL.items()}
    kinds: dict[Any, str] = {kind: letter for letter, kind in LETTERS.items()}
    letters = (kinds.get(type(layer.mixer or layer.feed_forward), "?") for layer in spec.layers)
    config["hybrid_override_pattern"] = "".join(letters)
    config |= {"num_hidden_layers": len(spec.layers), "layer_norm_epsilon": float(spec.norm.eps)}
    config |= fields_of(spec, Mamba2, **MAMBA, min_step="time_step_min")
    config |= fields_of(spec, GQA, **HEADS, kv_heads="num_key_value_heads")
    config |= fields_of(spec, MoE, experts="n_routed_experts", latent="moe_latent_size")
    config |= {"moe_intermediate_size": moe.expert.width} if moe else {}
    config |= {"moe_shared_expert_intermediate_size": moe.shared.width} if moe and moe.shared else {}
    return config | fields_of(spec, GroupedSigmoidTopK, **ROUTER) | ({"intermediate_size": mlp.hidden} if mlp else {})


def gguf_fields(spec: Decoder) -> ConfigFields:
    """Returns the .gguf metadata that is specific to this architecture: attention has no positions."""
    return {"rope.scaling.finetuned": False}


def _released(pattern, dim, heads, mamba_heads, hidden, experts, router, latent=None):
    mamba = Mamba2(mamba_heads, head_dim=64, groups=8, state=128, conv=4, eps=1e-5, min_step=1e-3)
    attn = GQA(heads, kv_heads=2, head_dim=128, rope=NoPE())
    moe = mixture(experts, hidden, shared=2 * hidden, router=router, latent=latent)
    return decoder(pattern=pattern, mamba=mamba, attn=attn, moe=moe, dim=dim, vocab=131_072, context=262_144)


_TOP_6, _TOP_22 = (GroupedSigmoidTopK(k, groups=1, keep=1, scale=scale) for k, scale in ((6, 2.5), (22, 5.0)))
_52 = "MEMEM*" + "EMEMEM*" * 4 + "EMEMEMEM*EMEMEMEME"
_88 = "MEMEMEM*" + "EMEMEMEM*" * 2 + "EMEMEMEMEM*" * 4 + "EMEMEMEM*EMEMEMEME"
_108 = "MEMEMEM*" + "EMEMEM*EMEMEMEM*EMEMEMEM*" * 3 + "EMEMEM*EMEMEMEM*EMEMEMEME"
_NANO = _released(_52, dim=2688, heads=32, mamba_heads=64, hidden=1856, experts=128, router=_TOP_6)
_SUPER = _released(_88, dim=4096, heads=32, mamba_heads=128, hidden=2688, experts=512, router=_TOP_22, latent=1024)
_ULTRA = _released(_108, dim=8192, heads=64, mamba_heads=256, hidden=5120, experts=512, router=_TOP_22, latent=2048)
HUB, RULE = "nvidia/NVIDIA-Nemotron-3-{}-BF16", "without the input embedding"
ABOUT = About(
    "Nemotron 3",
    "NVIDIA 2025",
    compared_with="llama3",
    licence="NVIDIA Open Model",
    report="https://arxiv.org/abs/2512.20856",
    left_out="multi-token prediction",
)
SIZES = {
    "nemotron3-nano-30b-a3b": Size(
        HUB.format("Nano-30B-A3B"), 31_577_940_288, _NANO, active=(3_227_754_816, RULE), released="2025-12"
    ),
    "nemotron3-super-120b-a12b": Size(
        HUB.format("Super-120B-A12B"),
        120_668_707_840,
        _SUPER,
        active=(12_233_366_528, RULE),
        released="2026-03",
        note="its config is that of the FP8 release",
    ),
    "nemotron3-ultra-550b-a55b": Size(
        HUB.format("Ultra-550B-A55B"),
        549_308_993_536,
        _ULTRA,
        active=(54_985_101_312, RULE),
        released="2026-04",
        note="released in 2026, the month is not established",
    ),
}
