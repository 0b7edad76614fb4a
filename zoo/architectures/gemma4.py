"""Gemma 4 (Google 2026), text part. New here: layers without a window have wider and fewer KV heads than those with
one, values that are the raw keys, and positions in a quarter of the pairs; values are normalised; scores are not
scaled; the output of each layer is multiplied by a stored number; logits are capped.

The configs of 12B are another library's defaults and not a copy of the published file (trust: low).
"""

from typing import Any

from zoo.blocks import GLU, GQA, GeGLU, Layer, LayerScale, ProportionalRoPE, RMSNorm, RoPE, sandwich
from zoo.hf.checkpoint_layout import Rename, Skipped
from zoo.hf.config import Config, ModelType, Size, layer_types, reads
from zoo.hf.fields import Fields
from zoo.hf.write_config import ConfigFields, common_fields, fields_of
from zoo.model.decoder import Decoder

WEIGHTS = (
    Rename("ffn.pre", "pre_feedforward_layernorm"),
    Rename("output_scale.weight", "layer_scalar"),
    *(
        Skipped(f"{prefix}{name}.*", "the vision and audio parts")
        for prefix in ("", "model.")
        for name in ("vision_tower", "audio_tower", "embed_vision", "embed_audio", "vision_embedder")
    ),
)
FULL, LOCAL = ProportionalRoPE(1e6, fraction=0.25), RoPE(1e4)


def decoder(
    *,
    dim,
    full_layers,
    heads,
    kv_heads,
    full_kv_heads,
    hidden,
    window=1024,
    head_dim=256,
    full_head_dim=512,
    keys_as_values=True,
    full=FULL,
    local=LOCAL,
    eps=1e-6,
    cap=30.0,
    vocab=262_144,
    context=262_144,
    **rest,
):
    """`full_layers`: of each layer, whether it sees everything."""
    norm = RMSNorm(eps, scale_in_fp32=True)
    both: dict[str, Any] = dict(qk_norm=norm, v_norm=RMSNorm(eps, weight=False), scale=1.0)

    def layer(is_full):
        if is_full:
            attn = GQA(heads, full_kv_heads, full_head_dim, rope=full, keys_as_values=keys_as_values, **both)
        else:
            attn = GQA(heads, kv_heads, head_dim, rope=local, window=window, **both)
        return Layer(sandwich(norm, attn), sandwich(norm, GLU(hidden, GeGLU())), LayerScale())

    layers = tuple(map(layer, full_layers))
    return Decoder(vocab, dim, layers, norm, embed_scale=dim**0.5, logit_cap=cap, context=context, **rest)


def every(period, layers):
    """Of each layer whether it is the last of a `period`."""
    return tuple(i % period == period - 1 for i in range(layers))


ROPES: dict[str, Any] = {
    "full_attention": dict(rope_type="proportional", partial_rotary_factor=0.25, rope_theta=1e6),
    "sliding_attention": dict(rope_type="default", rope_theta=1e4),
}
HEADS: dict[str, Any] = dict(num_attention_heads=8, num_key_value_heads=4, head_dim=256, global_head_dim=512)
DEFAULTS = HEADS | dict(num_global_key_value_heads=None, vocab_size=262_144, rms_norm_eps=1e-6)
DEFAULTS |= dict(tie_word_embeddings=True, rope_parameters=ROPES, attention_k_eq_v=False, final_logit_softcapping=None)
TEXT = dict(sliding_window=512, max_position_embeddings=131_072, hidden_size_per_layer_input=256)
UNIFIED = dict(sliding_window=1024, max_position_embeddings=262_144, hidden_size_per_layer_input=0)
EXPECTED: dict[str, Any] = dict(hidden_activation="gelu_pytorch_tanh", attention_bias=False)
KINDS = (
    ModelType("gemma4_text", "Gemma4ForCausalLM", TEXT),
    ModelType("gemma4", "Gemma4ForConditionalGeneration"),
    ModelType("gemma4_unified_text", "Gemma4UnifiedForCausalLM", UNIFIED),
    ModelType("gemma4_unified", "Gemma4UnifiedForConditionalGeneration"),
)


@reads(*KINDS, **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    config.expect(**EXPECTED, hidden_size_per_layer_input=0)
    config.neutral(num_kv_shared_layers=0, use_double_wide_mlp=False, enable_moe_block=False)
    config.unused("vocab_size_per_layer_input")
    if config.values.get("use_bidirectional_attention") == "vision":
        config.unused("use_bidirectional_attention")  # of image tokens among themselves
    config.neutral(use_bidirectional_attention=None)
    shape = config.dense()
    full_layers = _full_layers(config, shape.pop("layers"))
    shape |= config.integers(window="sliding_window", head_dim="head_dim") | _full_heads(config, full_layers)
    ropes = config.object("rope_parameters")
    full, local = (ropes.object(kind, ROPES[kind]) for kind in ROPES)
    full.expect(rope_type="proportional")
    local.expect(rope_type="default")
    shape["full"] = ProportionalRoPE(full.number("rope_theta"), fraction=full.number("partial_rotary_factor"))
    shape["local"] = RoPE(local.number("rope_theta"))
    spec = decoder(**shape, full_layers=full_layers, cap=config.optional_number("final_logit_softcapping"))
    config.agrees_on_windows(spec)
    return spec


def _full_layers(config: Config, layers: int) -> tuple[bool, ...]:
    """Of each layer whether `layer_types` says that it sees everything, as the last one always does. Where the field is
    absent it is one layer in six."""
    given = config.values.get("layer_types")
    if not isinstance(given, list) or len(given) != layers:
        return (*every(6, layers)[:-1], True)
    return (*(kind == "full_attention" for kind in given[:-1]), True)


def _full_heads(config: Config, full_layers: tuple[bool, ...]) -> dict[str, int | bool]:
    """The heads of layers that see everything: two fields in published files; in those that transformers 5.24 writes an
    object by layer, of what differs from the other layers."""
    is_raw = config.flag("attention_k_eq_v")
    names = {"full_head_dim": "global_head_dim", "full_kv_heads": "num_global_key_value_heads"}
    kv_heads = config.integer("num_key_value_heads")
    if config.values.get("per_layer_config") is None:
        heads = config.integer(names["full_head_dim"]), config.optional(names["full_kv_heads"])
        return {"full_head_dim": heads[0], "full_kv_heads": (is_raw and heads[1]) or kv_heads, "keys_as_values": is_raw}
    config.unused(*names.values())
    given, usual = config.object("per_layer_config"), {"head_dim": config.head_dim(), "num_key_value_heads": kv_heads}
    numbers = {int(key): given.object(key, usual) for key in given.values if key.isdecimal()}
    full = [i for i, is_full in enumerate(full_layers) if is_full]
    found = {tuple(numbers.get(i, Fields(usual)).integer(name) for name in usual) for i in full}
    if len(numbers) != len(given.values) or not numbers.keys() <= set(full) or len(found) != 1:
        raise config.error("per_layer_config must be of the layers of full_attention, and the same for all of them")
    return dict(zip(names, *found, strict=True)) | {"keys_as_values": is_raw}


def to_hf(spec: Decoder) -> ConfigFields:
    config = {"model_type": "gemma4_text"} | EXPECTED | common_fields(spec)
    config |= fields_of(spec, GLU, hidden="intermediate_size") | {"hidden_size_per_layer_input": 0}
    config |= {"layer_types": layer_types(spec), "final_logit_softcapping": spec.logit_cap}
    for name in ("rope_theta", "rope_scaling"):
        config.pop(name, None)
    full, local = (_attention(spec, is_full) for is_full in (True, False))
    if either := local or full:
        config |= fields_of(
            either, GQA, heads="num_attention_heads", kv_heads="num_key_value_heads", head_dim="head_dim"
        )
    if local:
        config |= fields_of(local, GQA, window="sliding_window")
    if full:
        names = dict(kv_heads="num_global_key_value_heads", head_dim="global_head_dim")
        config |= fields_of(full, GQA, keys_as_values="attention_k_eq_v", **names)
    ropes = {kind: _rope_entry(attn) for kind, attn in zip(ROPES, (full, local), strict=True) if attn}
    return config | {"rope_parameters": ropes}


def _attention(spec: Decoder, is_full: bool) -> GQA | None:
    """The first attention that sees everything, or that does not."""
    found = (layer.mixer for layer in spec.layers if isinstance(layer.mixer, GQA))
    return next((attn for attn in found if (attn.reach.limit is None) is is_full), None)


def _rope_entry(attn: GQA) -> ConfigFields:
    entry = fields_of(attn.rope, RoPE, theta="rope_theta")
    if isinstance(attn.rope, ProportionalRoPE):
        return {"rope_type": "proportional"} | entry | fields_of(attn.rope, RoPE, fraction="partial_rotary_factor")
    return {"rope_type": "default"} | entry


_31B = decoder(dim=5376, full_layers=every(6, 60), heads=32, kv_heads=16, full_kv_heads=4, hidden=21_504, tied=True)
_12B = decoder(dim=3840, full_layers=every(6, 48), heads=16, kv_heads=8, full_kv_heads=1, hidden=15_360, tied=True)
NOTE = "the month is not established, and the config is another library's defaults"
BEST_KNOWN = "gemma4-31b"
SIZES = {
    "gemma4-12b": Size(
        "google/gemma-4-12B",
        11_907_350_320,
        _12B,
        released="2026-04",
        note=NOTE,
    ),
    "gemma4-31b": Size("google/gemma-4-31B", 30_697_345_340, _31B, released="2026-04"),
}
