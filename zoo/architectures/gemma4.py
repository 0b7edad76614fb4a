"""Gemma 4 (Google 2026), text part. New here: layers with full attention have fewer and wider KV heads than those with
a window, use the raw keys as values, and rotate a quarter of the pairs. Values are normalised, and scores are not
scaled. A learned scalar multiplies each layer's output. Logits are capped. In 26B-A4B, a mixture of experts runs beside
each MLP, and the residual stream routes it. In E2B and E4B, the last layers reuse the keys and values of earlier
layers, and every layer has its own embedding of the tokens.

The configs of E2B, E4B, 26B-A4B and 31B are public copies of the published files (trust: high). The release months are
from memory. The config of 12B has another library's defaults and is not a copy (trust: low).
"""

from functools import partial
from typing import Any

from zoo.blocks import (
    GLU,
    GQA,
    DenseAndMoE,
    GeGLU,
    KVSource,
    Layer,
    LayerInput,
    LayerScale,
    MoE,
    NormedSoftmaxTopK,
    PerLayerInputs,
    ProportionalRoPE,
    RMSNorm,
    RoPE,
    SharedKV,
    olmo,
    sandwich,
)
from zoo.hf.checkpoint_layout import GLU_NAMES, Rename, Skipped, stacked_gate_up
from zoo.hf.config import About, Config, ModelType, Size, layer_types, reads
from zoo.hf.fields import Fields
from zoo.hf.write_config import ConfigFields, common_fields, fields_of, first
from zoo.model.decoder import Decoder

WEIGHTS = (
    Rename("ffn.pre", "pre_feedforward_layernorm"),
    Rename("output_scale.weight", "layer_scalar"),
    *(Rename(f"ffn.block.dense.{name}", f"mlp.{name}_proj") for name in GLU_NAMES),
    Rename("ffn.block.dense_pre", "pre_feedforward_layernorm"),
    Rename("ffn.block.dense_post", "post_feedforward_layernorm_1"),
    Rename("ffn.block.routed_pre", "pre_feedforward_layernorm_2"),
    Rename("ffn.block.routed_post", "post_feedforward_layernorm_2"),
    Rename("ffn.block.routed.router", "router.proj"),
    Rename("ffn.block.routed.router.norm.weight", "router.scale"),
    Rename("ffn.block.routed.router.expert_scale", "router.per_expert_scale"),
    stacked_gate_up("experts.gate_up_proj", "ffn.block.routed.experts"),
    Rename("ffn.block.routed.experts.down", "experts.down_proj"),
    Rename("per_layer.embed", "model.embed_tokens_per_layer"),
    Rename("per_layer.projection", "model.per_layer_model_projection"),
    Rename("per_layer.norm", "model.per_layer_projection_norm"),
    Rename("inputs.block.gate", "per_layer_input_gate"),
    Rename("inputs.block.out", "per_layer_projection"),
    Rename("inputs.post", "post_per_layer_input_norm"),
    *(
        Skipped(f"model.layers.{{i}}.self_attn.{name}.weight", "keys and values that are not used", mixer=SharedKV)
        for name in ("k_proj", "v_proj", "k_norm")
    ),
    *(
        Skipped(f"{prefix}{name}.*", "the vision and audio parts")
        for prefix in ("", "model.")
        for name in ("vision_tower", "audio_tower", "embed_vision", "embed_audio", "vision_embedder")
    ),
)


def decoder(
    *, dim, full_layers, heads, full, local, hidden, routed=None, sharing=0, shared_hidden=None, width, eps=1e-6, **rest
):
    """Returns the decoder. `full_layers` states for each layer whether it has full attention. `full` and `local` are
    fields of attention without and with a window. The last `sharing` layers reuse earlier keys and values, and their
    feed-forwards have the width `shared_hidden`. `width` is the width of per-layer inputs; 0 means no such inputs."""
    norm = RMSNorm(eps, scale_in_fp32=True)
    own = partial(KVSource if sharing else GQA, v_norm=RMSNorm(eps, weight=False))
    inputs = olmo(norm, LayerInput(width, GeGLU())) if width else None

    def layer(is_full, shares):
        fields = (full if is_full else local) | ({"keys_as_values": False} if shares else {})
        attn = (SharedKV if shares else own)(heads, **fields, qk_norm=norm, scale=1.0)
        dense = GLU((shares and shared_hidden) or hidden, GeGLU())
        ffn = olmo(norm, DenseAndMoE(dense, routed, norm)) if routed else sandwich(norm, dense)
        return Layer(sandwich(norm, attn), ffn, inputs, LayerScale())

    layers = tuple(layer(is_full, i >= len(full_layers) - sharing) for i, is_full in enumerate(full_layers))
    per_layer = PerLayerInputs(width, norm) if width else None
    return Decoder(dim=dim, layers=layers, norm=norm, embed_scale=dim**0.5, per_layer=per_layer, **rest)


def mixture(hidden, experts, k, eps=1e-6):
    return MoE(experts, GLU(hidden, GeGLU()), NormedSoftmaxTopK(k, RMSNorm(eps)))


def every(period, layers):
    """Returns, for each layer, whether its number (from 1) is a multiple of `period`."""
    return tuple(i % period == period - 1 for i in range(layers))


LAYER_TYPES = "sliding_attention", "full_attention"
ROPES = {
    "full_attention": dict(rope_type="proportional", partial_rotary_factor=0.25, rope_theta=1e6),
    "sliding_attention": dict(rope_type="default", rope_theta=1e4),
}
HEADS = dict(num_attention_heads=8, num_key_value_heads=4, head_dim=256, global_head_dim=512)
DEFAULTS: dict[str, Any] = HEADS | dict(num_global_key_value_heads=None, vocab_size=262_144, rms_norm_eps=1e-6)
DEFAULTS |= dict(
    tie_word_embeddings=True,
    enable_moe_block=False,
    rope_parameters=ROPES,
    attention_k_eq_v=False,
    final_logit_softcapping=None,
)
DEFAULTS |= dict(vocab_size_per_layer_input=262_144, num_kv_shared_layers=0, use_double_wide_mlp=False)
TEXT = dict(sliding_window=512, max_position_embeddings=131_072, hidden_size_per_layer_input=256)
UNIFIED = dict(sliding_window=1024, max_position_embeddings=262_144, hidden_size_per_layer_input=0)
EXPECTED = dict(hidden_activation="gelu_pytorch_tanh", attention_bias=False)
MIXTURE = dict(hidden="moe_intermediate_size", experts="num_experts", k="top_k_experts")
KINDS = (
    ModelType("gemma4_text", "Gemma4ForCausalLM", TEXT),
    ModelType("gemma4", "Gemma4ForConditionalGeneration"),
    ModelType("gemma4_unified_text", "Gemma4UnifiedForCausalLM", UNIFIED),
    ModelType("gemma4_unified", "Gemma4UnifiedForConditionalGeneration"),
)


@reads(*KINDS, expected=EXPECTED, **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    if config.values.get("use_bidirectional_attention") == "vision":
        config.unused("use_bidirectional_attention")  # only applies between image tokens
    config.neutral(use_bidirectional_attention=None)
    shape = config.common() | config.integers(hidden="intermediate_size")
    full_layers = _full_layers(config, shape.pop("layers"))
    config.agrees("layer_types", (LAYER_TYPES[is_full] for is_full in full_layers))
    widths = config.integers(kv_heads="num_key_value_heads", head_dim="head_dim", window="sliding_window")
    ropes = config.object("rope_parameters")
    full, local = (ropes.object(kind, ROPES[kind]) for kind in ROPES)
    full.expect(rope_type="proportional")
    local.expect(rope_type="default")
    local.neutral(partial_rotary_factor=1.0)
    rope = ProportionalRoPE(full.number("rope_theta"), fraction=full.number("partial_rotary_factor"))
    shape["full"] = _full_heads(config, full_layers) | {"rope": rope}
    shape["local"] = widths | {"rope": RoPE(local.number("rope_theta"))}
    shape["width"] = config.count("hidden_size_per_layer_input")
    if shape["width"]:
        config.expect(vocab_size_per_layer_input=shape["vocab"])
    config.unused("vocab_size_per_layer_input")
    shape["sharing"] = config.count("num_kv_shared_layers", len(full_layers) - 1)
    if config.flag("use_double_wide_mlp"):
        shape["shared_hidden"] = 2 * shape["hidden"]
    if config.flag("enable_moe_block"):
        shape["routed"] = mixture(**config.integers(**MIXTURE), eps=shape["eps"])
    config.unused(*MIXTURE.values())
    return decoder(**shape, full_layers=full_layers, logit_cap=config.optional_number("final_logit_softcapping"))


def _full_layers(config: Config, layers: int) -> tuple[bool, ...]:
    """Returns, for each layer, whether it has full attention, according to `layer_types`. Without this field, every
    sixth layer has it. The last layer always has it."""
    given = config.values.get("layer_types")
    if not isinstance(given, list) or len(given) != layers:
        return (*every(6, layers)[:-1], True)
    return (*(kind == "full_attention" for kind in given[:-1]), True)


def _full_heads(config: Config, full_layers: tuple[bool, ...]) -> dict[str, int | bool]:
    """Returns the fields for heads of layers with full attention. Published files have two config fields for these
    heads. Files that transformers 5.24 writes have an object that states, by layer, how layers differ from the others.
    """
    is_raw = config.flag("attention_k_eq_v")
    names = {"head_dim": "global_head_dim", "kv_heads": "num_global_key_value_heads"}
    kv_heads = config.integer("num_key_value_heads")
    if config.values.get("per_layer_config") is None:
        heads = config.integer(names["head_dim"]), config.optional(names["kv_heads"])
        return {"head_dim": heads[0], "kv_heads": (is_raw and heads[1]) or kv_heads, "keys_as_values": is_raw}
    config.unused(*names.values())
    given, usual = config.object("per_layer_config"), {"head_dim": config.head_dim(), "num_key_value_heads": kv_heads}
    numbers = {int(key): given.object(key, usual) for key in given.values if key.isdecimal()}
    full = [i for i, is_full in enumerate(full_layers) if is_full]
    found = {tuple(numbers.get(i, Fields(usual)).integer(name) for name in usual) for i in full}
    if len(numbers) != len(given.values) or not numbers.keys() <= set(full) or len(found) != 1:
        raise config.error("per_layer_config must name only layers of full_attention, with the same values for all")
    return dict(zip(names, *found, strict=True)) | {"keys_as_values": is_raw}


def to_hf(spec: Decoder) -> ConfigFields:
    config = common_fields(spec) | fields_of(spec, GLU, hidden="intermediate_size")
    width = spec.per_layer.width if spec.per_layer else 0
    config |= {"hidden_size_per_layer_input": width, "vocab_size_per_layer_input": spec.vocab}
    sharing = [layer for layer in spec.layers if isinstance(layer.mixer, SharedKV)]
    config["num_kv_shared_layers"] = len(sharing)
    if sharing and (dense := first(sharing[0], GLU)):
        config["use_double_wide_mlp"] = dense.hidden == 2 * config["intermediate_size"]
    if routed := first(spec, MoE):
        config |= {"enable_moe_block": True} | fields_of(routed, MoE, experts="num_experts")
        config |= fields_of(routed, GLU, hidden="moe_intermediate_size")
        config |= fields_of(routed, NormedSoftmaxTopK, k="top_k_experts")
    config |= {"layer_types": layer_types(spec), "final_logit_softcapping": spec.logit_cap}
    full, local = (_attention(spec, is_full) for is_full in (True, False))
    if either := local or full:
        config |= fields_of(
            either, GQA, heads="num_attention_heads", kv_heads="num_key_value_heads", head_dim="head_dim"
        )
    if local:
        config |= fields_of(local, GQA, window="sliding_window")
    if full:
        names = dict(kv_heads="num_global_key_value_heads") if full.keys_as_values else {}
        config |= fields_of(full, GQA, keys_as_values="attention_k_eq_v", head_dim="global_head_dim", **names)
    ropes = {kind: _rope_entry(attn) for kind, attn in zip(ROPES, (full, local), strict=True) if attn}
    return config | {"rope_parameters": ropes}


def _attention(spec: Decoder, is_full: bool) -> GQA | None:
    """Returns the first attention without a window in a model (`is_full`), or the first with one."""
    found = (layer.mixer for layer in spec.layers if isinstance(layer.mixer, GQA))
    return next((attn for attn in found if (attn.reach.limit is None) is is_full), None)


def _rope_entry(attn: GQA) -> ConfigFields:
    entry = fields_of(attn.rope, RoPE, theta="rope_theta")
    if isinstance(attn.rope, ProportionalRoPE):
        return {"rope_type": "proportional"} | entry | fields_of(attn.rope, RoPE, fraction="partial_rotary_factor")
    return {"rope_type": "default"} | entry


def gguf_fields(spec: Decoder) -> ConfigFields:
    """Returns the .gguf metadata that only this architecture has: the number of layers that reuse earlier keys."""
    return {"attention.shared_kv_layers": sum(bool(layer.takes()) for layer in spec.layers)}


def _released(kv_heads, full_kv_heads, window=1024, context=262_144, **rest):
    values = {"keys_as_values": full_kv_heads != kv_heads}
    full = dict(kv_heads=full_kv_heads, head_dim=512, rope=ProportionalRoPE(1e6, fraction=0.25)) | values
    local = dict(kv_heads=kv_heads, head_dim=256, rope=RoPE(1e4), window=window)
    rest = dict(width=0, vocab=262_144, context=context, tied=True, logit_cap=30.0) | rest
    return decoder(full=full, local=local, **rest)


_SMALL = dict(heads=8, window=512, width=256, context=131_072)
_E2B = dict(dim=1536, full_layers=every(5, 35), hidden=6144, sharing=20, shared_hidden=12_288)
_E4B = dict(dim=2560, full_layers=every(6, 42), hidden=10_240, sharing=18)
_26B = dict(dim=2816, full_layers=every(6, 30), heads=16, hidden=2112, routed=mixture(704, experts=128, k=8))
_12B = _released(8, 1, dim=3840, full_layers=every(6, 48), heads=16, hidden=15_360)
_31B = _released(16, 4, dim=5376, full_layers=every(6, 60), heads=32, hidden=21_504)
NOTE = "the month is not established, and the config is another library's defaults"
ABOUT = About(
    "Gemma 4",
    "Google 2026",
    compared_with="gemma3",
    licence="Apache-2.0",
    report="https://ai.google.dev/gemma/docs/core",
    left_out="vision and audio",
)
BEST_KNOWN = "gemma4-31b"
SIZES = {
    "gemma4-e2b": Size("google/gemma-4-E2B", 4_628_569_379, _released(1, 1, **_SMALL, **_E2B), released="2026-04"),
    "gemma4-e4b": Size("google/gemma-4-E4B", 7_463_013_418, _released(2, 2, **_SMALL, **_E4B), released="2026-04"),
    "gemma4-12b": Size(
        "google/gemma-4-12B",
        11_907_350_320,
        _12B,
        released="2026-04",
        note=NOTE,
    ),
    "gemma4-26b-a4b": Size("google/gemma-4-26B-A4B", 25_233_141_790, _released(8, 2, **_26B), released="2026-04"),
    "gemma4-31b": Size("google/gemma-4-31B", 30_697_345_340, _31B, released="2026-04"),
}
