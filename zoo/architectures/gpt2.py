"""GPT-2 (Radford et al. 2019), which all later models change: LayerNorm with biases before each branch, learned
positions instead of RoPE, multi-head attention, a feed-forward of two matrices with GELU, biases everywhere.

The reference stores matrices as (inputs, outputs), and a single matrix for queries, keys and values. The released files
were written from the model without its head, so no name begins with "transformer.". They also contain the causal masks.
"""

from zoo.blocks import GELU, GQA, MLP, Layer, LayerNorm, LearnedPositions, NoPE, pre
from zoo.hf.checkpoint_layout import LayerPrefix, ReadAs, Rearranged, Rename, Skipped
from zoo.hf.config import About, Config, ModelType, Size, reads
from zoo.hf.write_config import ConfigFields, common_fields, fields_of, first
from zoo.model.decoder import Decoder

QKV = "attn.block.q", "attn.block.k", "attn.block.v"
OTHERS = {"attn.block.o": "attn.c_proj", "ffn.block.up": "mlp.c_fc", "ffn.block.down": "mlp.c_proj"}
C_ATTN = "inputs (qkv outputs) -> qkv outputs inputs"
WEIGHTS = (
    LayerPrefix("transformer.h."),
    Rename("embed", "transformer.wte"),
    Rename("positions", "transformer.wpe"),
    Rename("norm", "transformer.ln_f"),
    Rename("attn.pre", "ln_1"),
    Rename("ffn.pre", "ln_2"),
    Rearranged(tuple(f"{name}.weight" for name in QKV), "attn.c_attn.weight", C_ATTN),
    Rearranged(tuple(f"{name}.bias" for name in QKV), "attn.c_attn.bias", "(qkv outputs) -> qkv outputs"),
    *(Rearranged(f"{ours}.weight", f"{theirs}.weight", "i o -> o i") for ours, theirs in OTHERS.items()),
    *(Rename(f"{ours}.bias", f"{theirs}.bias") for ours, theirs in OTHERS.items()),
    *(ReadAs(prefix, f"transformer.{prefix}") for prefix in ("wte.", "wpe.", "h.", "ln_f.")),
    Skipped("transformer.h.{i}.attn.bias", "causal masks"),
    Skipped("transformer.h.{i}.attn.masked_bias", "causal masks"),
)


def decoder(*, dim, layers, heads, hidden=None, context=1024, vocab=50_257, eps=1e-5, tied=True) -> Decoder:
    norm = LayerNorm(eps)
    attn = GQA(heads, kv_heads=heads, head_dim=dim // heads, rope=NoPE(), bias=True)
    layer = Layer(pre(norm, attn), pre(norm, MLP(hidden or 4 * dim, GELU(), bias=True)))
    positions = LearnedPositions(context)
    return Decoder(vocab, dim, (layer,) * layers, norm, tied, context=context, positions=positions)


NAMES = dict(dim="n_embd", layers="n_layer", heads="n_head", context="n_positions", eps="layer_norm_epsilon")
# Fields of a class with a second head, and fields that only the first versions of the reference had.
UNREAD = [f"summary_{name}" for name in ("activation", "first_dropout", "proj_to_labels", "type", "use_proj")]
UNREAD += ["n_special", "output_past", "predict_special_tokens"]


KIND, EXPECTED = ModelType("gpt2", "GPT2LMHeadModel"), dict(activation_function="gelu_new")


@reads(KIND, expected=EXPECTED, n_inner=None, layer_norm_epsilon=1e-5, tie_word_embeddings=True)
def from_hf(config: Config) -> Decoder:
    shape = config.common(**NAMES)
    if shape["dim"] % shape["heads"]:
        raise config.error(f"n_embd={shape['dim']} must be a multiple of n_head={shape['heads']}")
    config.neutral(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, reorder_and_upcast_attn=False)
    config.neutral(n_ctx=shape["context"])
    config.unused(*UNREAD)
    return decoder(**shape, hidden=config.optional("n_inner"))


def to_hf(spec: Decoder) -> ConfigFields:
    config = common_fields(spec, **NAMES) | fields_of(spec, GQA, heads="n_head")
    if spec.positions:
        config |= dict.fromkeys(("n_positions", "n_ctx"), spec.positions.count)
    mlp = first(spec, MLP)
    return config | {"n_inner": mlp.hidden if mlp and mlp.hidden != 4 * spec.dim else None}


_124M, _355M = decoder(dim=768, layers=12, heads=12), decoder(dim=1024, layers=24, heads=16)
_774M, _1_5B = decoder(dim=1280, layers=36, heads=20), decoder(dim=1600, layers=48, heads=25)
ABOUT = About(
    "GPT-2",
    "Radford et al. 2019",
    licence="Modified MIT",
    report="https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
)
SIZES = {
    "gpt2-small": Size("openai-community/gpt2", 124_439_808, _124M, released="2019-02"),
    "gpt2-medium": Size("openai-community/gpt2-medium", 354_823_168, _355M, released="2019-05"),
    "gpt2-large": Size("openai-community/gpt2-large", 774_030_080, _774M, released="2019-08"),
    "gpt2-xl": Size("openai-community/gpt2-xl", 1_557_611_200, _1_5B, released="2019-11"),
}
