"""DeepSeek-V4 (DeepSeek-AI 2026), model_type deepseek_v4. New here: all heads share one vector per token as key and
value. Attention sees a window of 128 tokens, and compressed entries for older tokens. An entry stands for 128 tokens,
or for four; an indexer chooses among the latter. Hyper-connections mix four residual streams. In the first layers, the
token id chooses the experts. SwiGLU is clamped.

The configs of both sizes are public copies of the published files (trust: high). The release months and the licence are
from memory. The names of tensors are those that the reference renames when it reads released files; no released file
was inspected. Released experts are packed in fp4, in a layout that is not known well enough to read. As in the
reference, multi-token prediction and the indexer's Hadamard matrix and fp8 are left out.
"""

from dataclasses import replace
from typing import Any

from zoo.architectures.deepseek_v3 import split
from zoo.blocks import (
    GLU,
    ClampedSwiGLU,
    CompressedAttention,
    Compressor,
    EntryIndexer,
    HashTopK,
    HyperBranch,
    Layer,
    MoE,
    RMSNorm,
    RoPE,
    SqrtSoftplusTopK,
    Streams,
    YarnScaling,
)
from zoo.hf.checkpoint_layout import (
    NUMBERED,
    LayerPrefix,
    PairedRows,
    ReadAs,
    Rename,
    Skipped,
    Stacked,
)
from zoo.hf.config import MAX_LAYERS, About, Config, Size, reads
from zoo.hf.write_config import ConfigFields, common_fields, fields_of, first, scaling_fields
from zoo.model.decoder import Decoder


def _index_split(attn):
    return attn.index_nope_dim, attn.rope_dim, 0


def _compressor(module, name, widths):
    """Yields the tensor mappings of a compressor that makes entries of these `widths`."""
    yield from (PairedRows(f"{module}.{own}", f"{name}.{other}", widths) for own, other in POOLING.items())
    yield PairedRows(f"{module}.position_bias", f"{name}.ape", widths, axis=-1)


POOLING = dict(kv="wkv", gate="wgate", norm="norm")


WEIGHTS = (
    # The reference writes some names of its own where released files have others.
    LayerPrefix("layers."),
    ReadAs("model.", ""),
    Rename("embed", "embed"),
    Rename("embed", "embed_tokens"),
    Rename("norm", "norm"),
    Rename("head", "head"),
    *(
        Rename(f"{branch}.weights.{own}", f"hc_{branch}_{name}")
        for branch in ("attn", "ffn")
        for own, name in (("weight", "fn"), ("bias", "base"), ("scale", "scale"))
    ),
    *(
        Rename(f"contraction.weights.{own}", f"{prefix}{name}")
        for prefix in ("hc_head_", "hc_head.hc_")
        for own, name in (("weight", "fn"), ("bias", "base"), ("scale", "scale"))
    ),
    Rename("ffn.weights", "ffn_hc"),  # the reference calls them by the module that reads them
    Rename("attn.pre", "attn_norm"),
    Rename("ffn.pre", "ffn_norm"),
    Rename("attn.block.q.down", "attn.wq_a"),
    Rename("attn.block.q.norm", "attn.q_norm"),
    PairedRows("attn.block.q.up", "attn.wq_b", split),
    PairedRows("attn.block.kv", "attn.wkv", split),
    PairedRows("attn.block.kv_norm", "attn.kv_norm", split),
    PairedRows("attn.block.kv_norm", "attn.norm", split),
    Rename("attn.block.sinks", "attn.attn_sink"),
    PairedRows("attn.block.o_groups", "attn.wo_a", split, axis=-1),
    Rename("attn.block.o", "attn.wo_b"),
    *_compressor("attn.block.compressor", "attn.compressor", split),
    *_compressor("attn.block.indexer.compressor", "attn.indexer.compressor", _index_split),
    PairedRows("attn.block.indexer.q", "attn.indexer.wq_b", _index_split),
    Rename("attn.block.indexer.head_weights", "attn.indexer.weights_proj"),
    Rename("ffn.block.router", "ffn.gate"),
    Rename("ffn.block.router.correction", "ffn.gate.bias"),
    Rename("ffn.block.router.table", "ffn.gate.tid2eid"),
    *(
        rule
        for own, name in NUMBERED.items()
        for rule in (
            Stacked(f"ffn.block.experts.{own}", f"ffn.experts.{{e}}.{name}.weight"),
            Rename(f"ffn.block.shared.{own}", f"ffn.shared_experts.{name}"),
        )
    ),
    Skipped("mtp.*", "the multi-token prediction layer"),
)
SLIDING, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
KINDS = {0: SLIDING, 4: CSA, 128: HCA}  # entry of compress_ratios -> kind of attention
HASHED, SCORED = "hash_moe", "moe"


def decoder(*, kinds, hashed, attn, ropes, compressors, k, scale, experts, hidden, clamp, iterations, eps, **rest):
    """Returns the decoder. For each layer, `kinds` holds the kind of attention, and `hashed` states whether token ids
    choose the experts. `ropes` holds two encodings: for layers without and with a compressor. `compressors` maps kinds
    to compressors."""
    norm, plain = RMSNorm(eps, scale_in_fp32=True), RMSNorm(eps, weight=False)
    glu = GLU(hidden, ClampedSwiGLU(1.0, clamp, plus_one=False))
    streams = replace(rest.pop("streams"), norm_eps=eps)

    def layer(kind, is_hashed):
        compressor = compressors.get(kind)
        mixer = CompressedAttention(
            **attn, norm=norm, q_norm=plain, rope=ropes[compressor is not None], compressor=compressor
        )
        router = HashTopK(k, scale, rest["vocab"]) if is_hashed else SqrtSoftplusTopK(k, scale)
        blocks = mixer, MoE(experts, glu, router, shared=glu)
        attn_branch, ffn_branch = (HyperBranch(block, norm, streams, iterations) for block in blocks)
        return Layer(attn_branch, ffn_branch)

    layers = tuple(layer(*pair) for pair in zip(kinds, hashed, strict=True))
    return Decoder(layers=layers, norm=norm, streams=streams, **rest)


def compressors_of(indexer, rates):
    return {CSA: Compressor(rates[CSA], overlap=True, indexer=indexer), HCA: Compressor(rates[HCA])}


EXPECTED = dict(hidden_act="silu", attention_bias=False, mlp_bias=False, scoring_func="sqrtsoftplus")
EXPECTED |= dict(topk_method="noaux_tc", norm_topk_prob=True, n_shared_experts=1, num_key_value_heads=1)
ATTENTION = dict(heads="num_attention_heads", head_dim="head_dim", q_rank="q_lora_rank", window="sliding_window")
ATTENTION |= dict(groups="o_groups", o_rank="o_lora_rank")
INDEX = dict(heads="index_n_heads", head_dim="index_head_dim", k="index_topk")
EXPERTS = dict(experts="n_routed_experts", hidden="moe_intermediate_size", k="num_experts_per_tok")
DEFAULTS: dict[str, Any] = dict(head_dim=512, q_lora_rank=1024, o_groups=8, o_lora_rank=1024, sliding_window=128)
DEFAULTS |= dict(index_n_heads=64, index_head_dim=128, index_topk=512, num_experts_per_tok=6, n_routed_experts=256)
DEFAULTS |= dict(routed_scaling_factor=1.5, swiglu_limit=10.0, hc_mult=4, hc_sinkhorn_iters=20, hc_eps=1e-6)
DEFAULTS |= dict(rope_theta=1e4, compress_rope_theta=1.6e5, rms_norm_eps=1e-6, tie_word_embeddings=False)
DEFAULTS |= dict(num_hash_layers=3)
RATES = {CSA: 4, HCA: 128}
SHARE = 64 / 512  # rotated share of a head


@reads("deepseek_v4", expected=EXPECTED, **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    config.neutral(router_jitter_noise=0.0)
    config.unused("expert_dtype")  # only describes how the experts are stored
    shape = config.common()
    layers = shape.pop("layers")
    del shape["heads"]
    attn = config.typed(CompressedAttention, **ATTENTION) | {"rope_dim": read_rope_dim(config)}
    rates = config.object("compress_rates", RATES)
    older = {CSA: "compress_rate_csa", HCA: "compress_rate_hca"}
    every = {
        kind: config.integer(name) if name in config.values else rates.integer(kind) for kind, name in older.items()
    }
    indexer = EntryIndexer(**config.typed(EntryIndexer, **INDEX))
    return decoder(
        **shape,
        **config.integers(**EXPERTS),
        kinds=read_kinds(config, layers),
        hashed=read_hashed(config, layers),
        attn=attn,
        ropes=read_ropes(config, attn["rope_dim"] / attn["head_dim"]),
        compressors=compressors_of(indexer, every),
        scale=config.number("routed_scaling_factor"),
        clamp=config.number("swiglu_limit"),
        streams=Streams(config.integer("hc_mult"), config.number("hc_eps")),
        iterations=config.integer("hc_sinkhorn_iters"),
    )


def read_rope_dim(config):
    """Returns the number of rotated elements of a head: `qk_rope_head_dim` or, without it, a share of the head. This
    share is `partial_rotary_factor` or, without that, 1/8. Raises MalformedError if the two fields disagree."""
    given = config.optional("qk_rope_head_dim") if "qk_rope_head_dim" in config.values else None
    share = config.values.get("partial_rotary_factor")
    by_share = int(config.integer("head_dim") * (SHARE if share is None else config.number("partial_rotary_factor")))
    if share is not None and given not in (None, by_share):
        raise config.error(f"qk_rope_head_dim={given} is not partial_rotary_factor={share} of head_dim")
    return by_share if given is None else given


def read_kinds(config, layers):
    """Returns the kind of attention of each layer: from `layer_types`, or else from `compress_ratios`, whose additional
    entries are for multi-token prediction. The default is two HCA layers, then HCA and CSA alternating."""
    ratios = config.values.get("compress_ratios")
    usual = [CSA if i >= 2 and i % 2 else HCA for i in range(layers)]
    if config.values.get("layer_types") is None and ratios is not None:
        if not isinstance(ratios, list) or len(ratios) < layers:
            raise config.error(f"compress_ratios must have an entry for each of {layers} layers")
        strange = [ratio for ratio in ratios if isinstance(ratio, bool) or ratio not in KINDS]
        if strange:
            raise config.error(f"compress_ratios has {strange[0]!r}; known: {', '.join(map(str, KINDS))}")
        usual = [KINDS[ratio] for ratio in ratios[:layers]]
    config.unused("compress_ratios")
    return config.plan("layer_types", tuple(KINDS.values()), usual)


def read_hashed(config, layers):
    """Returns, for each layer, whether token ids choose its experts: from `mlp_layer_types`, or else true for the first
    `num_hash_layers` layers."""
    first = config.count("num_hash_layers", MAX_LAYERS)
    kinds = config.plan("mlp_layer_types", (HASHED, SCORED), [HASHED if i < first else SCORED for i in range(layers)])
    return [kind == HASHED for kind in kinds]


def read_ropes(config, share):
    """Returns the rotary encodings of layers with only a window, and of layers with a compressor. Only the latter use
    YaRN. YaRN's gain is 1, unless the config has `attention_factor` or the newer `rope_parameters`."""
    found = []
    for kind, theta in (("main", "rope_theta"), ("compress", "compress_rope_theta")):
        rope = config.rope(kind, theta, scaled=kind == "compress", fraction=share)
        if rope.fraction != share:
            raise config.error(f"partial_rotary_factor={rope.fraction:g} of {kind} is not {share:g}")
        scaling = rope.scaling
        if isinstance(scaling, YarnScaling) and config.values.get("rope_parameters") in (None, {}):
            scaling = replace(scaling, gain=config.rope_field("attention_factor") or 1.0)
        found.append(RoPE(rope.theta, scaling))
    return found


def to_hf(spec: Decoder) -> ConfigFields:
    attn = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, CompressedAttention)]
    config = common_fields(spec) | fields_of(spec, CompressedAttention, **ATTENTION, rope_dim="qk_rope_head_dim")
    config |= fields_of(spec, EntryIndexer, **INDEX) | fields_of(spec, ClampedSwiGLU, limit="swiglu_limit")
    config |= fields_of(spec, Streams, count="hc_mult", eps="hc_eps")
    config |= fields_of(spec, HyperBranch, iterations="hc_sinkhorn_iters")
    if moe := first(spec, MoE):
        config |= fields_of(spec, MoE, experts="n_routed_experts") | {"moe_intermediate_size": moe.expert.width}
        for router in (SqrtSoftplusTopK, HashTopK):
            config |= fields_of(moe, router, k="num_experts_per_tok", scale="routed_scaling_factor")
    config["layer_types"] = [_kind(each) for each in attn]
    hashed = (first(layer, HashTopK) is not None for layer in spec.layers)
    config["mlp_layer_types"] = [HASHED if is_hashed else SCORED for is_hashed in hashed]
    config["compress_rates"] = RATES | {_kind(each): each.compressor.every for each in attn if each.compressor}
    for each in attn[::-1]:
        if not each.compressor and isinstance(each.rope, RoPE):
            config["rope_theta"] = float(each.rope.theta)
        elif isinstance(each.rope, RoPE):
            config["compress_rope_theta"] = float(each.rope.theta)
            config["rope_scaling"] = scaling_fields(each.rope.scaling) if each.rope.scaling else None
    return config


def _kind(attn: CompressedAttention) -> str:
    return SLIDING if attn.compressor is None else CSA if attn.compressor.indexer else HCA


def _size(ratios, indexer_k, **rest):
    attn = dict(head_dim=512, rope_dim=64, o_rank=1024, window=128) | rest.pop("attn")
    indexer = EntryIndexer(heads=64, head_dim=128, k=indexer_k)
    ropes = RoPE(1e4), RoPE(1.6e5, YarnScaling(factor=16, original=65_536, gain=1.0))
    shape = dict(kinds=[KINDS[ratio] for ratio in ratios], hashed=[i < 3 for i in range(len(ratios))], attn=attn)
    shape |= dict(ropes=ropes, compressors=compressors_of(indexer, RATES), k=6, clamp=10.0, iterations=20, eps=1e-6)
    return decoder(**shape, streams=Streams(4), vocab=129_280, context=1_048_576, **rest)


_FLASH = _size(
    (0, 0, *(4, 128) * 20, 4),
    512,
    dim=4096,
    attn=dict(heads=64, q_rank=1024, groups=8),
    experts=256,
    hidden=2048,
    scale=1.5,
)
_PRO = _size(
    (128, 128, *(4, 128) * 29, 4),
    1024,
    dim=7168,
    attn=dict(heads=128, q_rank=1536, groups=16),
    experts=384,
    hidden=3072,
    scale=2.5,
)
ABOUT = About(
    "DeepSeek-V4",
    "DeepSeek-AI 2026",
    compared_with="deepseek-v3-2",
    licence="MIT",
    report="https://huggingface.co/deepseek-ai/DeepSeek-V4-Pro",
    left_out="multi-token prediction",
)
SIZES = {
    "deepseek-v4-flash-284b": Size("deepseek-ai/DeepSeek-V4-Flash", 284_332_240_471, _FLASH, released="2026-04"),
    "deepseek-v4-pro-1.6t": Size("deepseek-ai/DeepSeek-V4-Pro", 1_572_997_201_763, _PRO, released="2026-04"),
}
