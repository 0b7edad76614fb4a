"""OLMo 3 (Team OLMo 2025). New here: three of four layers have a window of 4,096 tokens; norms are placed as in OLMo 2.
YaRN scales RoPE only in the layers with full attention."""

from zoo.blocks import GLU, GQA, Layer, RMSNorm, RoPE, YarnScaling, olmo, yarn_gain
from zoo.hf.config import About, Config, Size, reads
from zoo.hf.write_config import ConfigFields, dense_fields, first_rope, scaling_fields, window_fields
from zoo.model.decoder import Decoder


def decoder(*, layers, heads, kv_heads, head_dim, hidden, window, rope, local, eps=1e-6, **rest) -> Decoder:
    norm = RMSNorm(eps, scale_in_fp32=True)

    def layer(rope, window):
        attn = GQA(heads, kv_heads, head_dim, rope=rope, window=window, qk_norm=norm, qk_norm_over="projection")
        return Layer(olmo(norm, attn), olmo(norm, GLU(hidden=hidden)))

    pattern = tuple(layer(rope, None) if i % 4 == 3 else layer(local, window) for i in range(layers))
    return Decoder(layers=pattern, norm=norm, **rest)


THETA = 5e5
WIDTHS = dict(num_key_value_heads=None, head_dim=None, sliding_window=4096, max_position_embeddings=2048)
DEFAULTS = WIDTHS | dict(rms_norm_eps=1e-5, rope_theta=THETA, tie_word_embeddings=False)


@reads("olmo3", expected=dict(hidden_act="silu", attention_bias=False), **DEFAULTS)
def from_hf(config: Config) -> Decoder:
    local = config.rope("sliding_attention", scaled=False)
    return decoder(**config.dense(kind="full_attention"), window=config.integer("sliding_window"), local=local)


def to_hf(spec: Decoder) -> ConfigFields:
    config = dense_fields(spec) | window_fields(spec)
    full, local = first_rope(spec), first_rope(spec, windowed=True)
    if full is None or local is None:
        return config
    if full.theta == THETA and local == RoPE(THETA):
        return config | {"rope_scaling": _rope_entry(full) if full.scaling else None}
    # If rope_theta is not the released one, versions of the reference disagree on the base of windowed layers.
    by_kind = {"full_attention": _rope_entry(full, float(full.theta))}
    by_kind["sliding_attention"] = _rope_entry(local, float(local.theta))
    return config | {"rope_theta": None, "rope_scaling": None, "rope_parameters": by_kind}


def _rope_entry(rope: RoPE, theta: float | None = None) -> ConfigFields:
    """Returns a rotary encoding as an object of a config. It states the scaling, YaRN's gain, and any `theta`."""
    scaling = scaling_fields(rope.scaling) if rope.scaling else None
    entry = scaling or {"rope_type": "default"}
    if isinstance(rope.scaling, YarnScaling):
        entry["attention_factor"] = float(rope.scaling.gain)
    return entry | ({"rope_theta": theta} if theta else {})


_STRETCHED = RoPE(THETA, YarnScaling(factor=8, original=8192, gain=yarn_gain(8)))
_BOTH = dict(head_dim=128, window=4096, rope=_STRETCHED, local=RoPE(THETA), vocab=100_278, context=65_536)
_7B = dict(_BOTH, dim=4096, layers=32, heads=32, kv_heads=32, hidden=11_008)
_32B = dict(_BOTH, dim=5120, layers=64, heads=40, kv_heads=8, hidden=27_648)
ABOUT = About(
    "OLMo 3", "Team OLMo 2025", compared_with="olmo2", licence="Apache-2.0", report="https://arxiv.org/abs/2512.13961"
)
BEST_KNOWN = "olmo3-32b"
SIZES = {
    "olmo3-7b": Size("allenai/Olmo-3-1025-7B", 7_298_011_136, decoder(**_7B), released="2025-11"),
    "olmo3-32b": Size("allenai/Olmo-3-1125-32B", 32_233_522_176, decoder(**_32B), released="2025-11"),
}
