"""SmolLM3 (Hugging Face 2025). New here: every fourth layer has no position encoding at all (NoPE)."""

from zoo.blocks import GLU, GQA, Layer, NoPE, RMSNorm, RoPE, pre
from zoo.hf.config import About, Config, ModelType, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields, first, window_fields
from zoo.model.decoder import Decoder


def decoder(*, layers, heads, kv_heads, head_dim=128, hidden, interval=4, rope=RoPE(5e6), eps=1e-6, **rest) -> Decoder:
    norm = RMSNorm(eps)

    def layer(position):
        return Layer(pre(norm, GQA(heads, kv_heads, head_dim, rope=position)), pre(norm, GLU(hidden=hidden)))

    pattern = tuple(layer(NoPE() if i % interval == interval - 1 else rope) for i in range(layers))
    return Decoder(layers=pattern, norm=norm, **rest)


KIND = ModelType("smollm3", "SmolLM3ForCausalLM")
WIDTHS = dict(num_key_value_heads=4, head_dim=None, max_position_embeddings=32_768, no_rope_layer_interval=4)
DEFAULTS = WIDTHS | dict(rms_norm_eps=1e-6, rope_theta=2e6, tie_word_embeddings=True)
EXPECTED = dict(hidden_act="silu", attention_bias=False, mlp_bias=False, use_sliding_window=False)


@reads(KIND, expected=EXPECTED, **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    config.unused("sliding_window", "max_window_layers")
    spec = decoder(**config.dense(), interval=config.integer("no_rope_layer_interval"))
    config.agrees("no_rope_layers", rotated(spec))
    return spec


def to_hf(spec: Decoder) -> ConfigFields:
    return dense_fields(spec) | window_fields(spec) | position_fields(spec)


def position_fields(spec: Decoder) -> ConfigFields:
    return {"no_rope_layers": rotated(spec), "no_rope_layer_interval": [*rotated(spec), 0].index(0) + 1}


def rotated(spec):
    """Returns, for each layer, 1 if it has position encoding and 0 if it does not."""
    return [int(first(layer, NoPE) is None) for layer in spec.layers]


_3B = dict(dim=2048, layers=36, heads=16, kv_heads=4, hidden=11_008, vocab=128_256, tied=True, context=65_536)
ABOUT = About(
    "SmolLM3",
    "Hugging Face 2025",
    compared_with="llama3",
    licence="Apache-2.0",
    report="https://huggingface.co/blog/smollm3",
)
SIZES = {"smollm3-3b": Size("HuggingFaceTB/SmolLM3-3B", 3_075_098_624, decoder(**_3B), released="2025-07")}
