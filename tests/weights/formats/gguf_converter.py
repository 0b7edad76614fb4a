""".gguf files of references, written as llama.cpp's converter writes them, with a table of names that is independent of
the loader. The table has the parts of names after the layer's number, in transformers' modules and in GGUF.
"""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor, nn

from tests import toys
from tests.reference import exact_logits
from tests.weights.checkpoints import Config, Tensors
from tests.weights.formats.gguf_fields import fields

KINDS = {
    "llama3.1-8b": "llama",
    "llama3.2-1b": "llama",
    "mistral-small-3.1-24b": "llama",
    "mixtral-8x7b": "llama",
    "qwen2.5-0.5b": "qwen2",
    "qwen2.5-7b": "qwen2",
    "qwen3-0.6b": "qwen3",
    "qwen3-30b-a3b": "qwen3moe",
    "olmo2-7b": "olmo2",
    "smollm3-3b": "smollm3",
    "gpt-oss-20b": "gpt-oss",
    "gemma2-2b": "gemma2",
    "gemma3-1b": "gemma3",
    "phi4-14b": "phi3",
    "phi4-mini-3.8b": "phi3",
    "glm4.5-355b": "glm4moe",
    "gpt2-small": "gpt2",
    "olmo3-7b": "olmo2",
    "deepseek-v3-671b": "deepseek2",
    "moonlight-16b-a3b": "deepseek2",
    "minimax-m2-230b": "minimax-m2",
    "llama4-scout-109b": "llama4",
    "llama4-maverick-400b": "llama4",
    "qwen3-next-80b-a3b": "qwen3next",
    "qwen3.5-0.8b": "qwen35",
    "qwen3.5-35b-a3b": "qwen35moe",
    "granite4-h-tiny": "granitehybrid",
    "nemotron3-super-120b-a12b": "nemotron_h_moe",
    "kimi-linear-48b-a3b": "kimi-linear",
    "lfm2-350m": "lfm2",
    "lfm2-8b-a1b": "lfm2moe",
    "trinity-nano-6b": "afmoe",
    "ministral3-3b": "mistral3",
    "gemma4-31b": "gemma4",
    "gemma4-e2b": "gemma4",
    "gemma4-26b-a4b": "gemma4",
    "glm5.2-744b": "glm-dsa",
    "mistral-small-4-119b": "mistral4",
}
PAIRED = {"llama", "smollm3", "mistral3", "granitehybrid"}
GEMMA, QWEN_HYBRIDS = {"gemma2", "gemma3"}, {"qwen3next", "qwen35", "qwen35moe"}
POST = {"olmo2", "gpt-oss", "gemma4", "glm4moe", "afmoe", *GEMMA, *QWEN_HYBRIDS}
OUTSIDE = {
    "token_embd": "embed_tokens embeddings wte",
    "output_norm": "norm norm_f ln_f",
    "token_embd_norm": "embedding_norm",
    "output": "lm_head",
    "position_embd": "wpe",
    "per_layer_token_embd": "embed_tokens_per_layer",
    "per_layer_model_proj": "per_layer_model_projection",
    "per_layer_proj_norm": "per_layer_projection_norm",
}
NAMES = [
    (r"input_layernorm|operator_norm|ln_1|norm", "attn_norm"),
    (r"pre_feedforward_layernorm|pre_mlp_layernorm|ffn_norm|ln_2", "ffn_norm"),
    (r"post_feedforward_layernorm|post_mlp_layernorm", "post_ffw_norm"),
    (r"(pre|post)_feedforward_layernorm_([12])", r"\1_ffw_norm_\2"),
    (r"router\.proj", "ffn_gate_inp"),
    (r"per_layer_input_gate", "inp_gate"),
    (r"per_layer_projection", "proj"),
    (r"post_per_layer_input_norm", "post_norm"),
    (r"(?:self_attn|mixer)\.([qkv])_proj", r"attn_\1"),
    (r"self_attn\.qkv_proj|attn\.c_attn|linear_attn\.in_proj_qkv", "attn_qkv"),
    (r"(?:self_attn|mixer)\.o_proj|self_attn\.out_proj|attn\.c_proj", "attn_output"),
    (r"self_attn\.([qk])_(?:norm|layernorm)", r"attn_\1_norm"),
    (r"self_attn\.q_([ab])_proj", r"attn_q_\1"),
    (r"self_attn\.(q|kv)_a_layernorm", r"attn_\1_a_norm"),
    (r"self_attn\.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    (r"self_attn\.gate_proj|linear_attn\.in_proj_z", "attn_gate"),
    (r"self_attn\.indexer\.k_norm", "indexer.k_norm"),
    (r"self_attn\.indexer\.wk", "indexer.attn_k"),
    (r"self_attn\.indexer\.wq_b", "indexer.attn_q_b"),
    (r"self_attn\.indexer\.weights_proj", "indexer.proj"),
    (r"(?:mlp|feed_forward)\.(gate|up|down)_proj", r"ffn_\1"),
    (r"feed_forward\.w1", "ffn_gate"),
    (r"feed_forward\.w3|mlp\.c_fc|mlp\.gate_up_proj", "ffn_up"),
    (r"feed_forward\.w2|mlp\.c_proj", "ffn_down"),
    (r"(?:mlp|feed_forward|mixer|block_sparse_moe)\.(?:router|gate|router\.gate)", "ffn_gate_inp"),
    (r"(?:mlp|feed_forward|mixer)\.shared_experts?\.(gate|up|down)_proj", r"ffn_\1_shexp"),
    (r"shared_mlp\.output_linear", "ffn_down_shexp"),
    (r"mlp\.shared_expert_gate", "ffn_gate_inp_shexp"),
    (r"mixer\.fc1_latent_proj", "ffn_latent_down"),
    (r"mixer\.fc2_latent_proj", "ffn_latent_up"),
    (r"conv\.(conv|in_proj|out_proj)", r"shortconv.\1"),
    (r"(?:mamba|mixer)\.in_proj", "ssm_in"),
    (r"linear_attn\.in_proj_ba", "ssm_ba"),
    (r"linear_attn\.in_proj_a", "ssm_alpha"),
    (r"linear_attn\.in_proj_b|self_attn\.b_proj", "ssm_beta"),
    (r"self_attn\.forget_gate\.f_([ab])_proj", r"ssm_f_\1"),
    (r"self_attn\.g_([ab])_proj", r"ssm_g_\1"),
    (r"(?:mamba|mixer|linear_attn)\.conv1d", "ssm_conv1d"),
    (r"(?:mamba|mixer|linear_attn)\.norm|self_attn\.o_norm", "ssm_norm"),
    (r"(?:mamba|mixer|linear_attn)\.out_proj", "ssm_out"),
]
PREDICTION = "nextn.eh_proj.weight"  # one of multi-token prediction's
# Names that do not end in "weight" or "bias" there.
WHOLE = [
    (r".*e_score_correction_bias|.*expert_bias", "exp_probs_b.bias"),
    (r".*dt_bias", "ssm_dt.bias"),
    (r".*A_log", "ssm_a"),
    (r".*\.D", "ssm_d"),
    (r"self_attn\.sinks", "attn_sinks.weight"),
    (r"layer_scalar", "layer_output_scale.weight"),
    (r"router\.scale", "ffn_gate_inp.scale"),
    (r"router\.per_expert_scale", "ffn_down_exps.scale"),
]


def renamed(name: str, kind: str) -> str:
    if not (found := re.fullmatch(r".*?(?:layers|h)\.(\d+)\.(.+)", name)):
        stem, _, leaf = name.rpartition(".")
        (new,) = [new for new, names in OUTSIDE.items() if stem.rpartition(".")[2] in names.split()]
        return f"{new}.{leaf}"
    place, local = f"blk.{found[1]}", found[2]
    for pattern, whole in WHOLE:
        if re.fullmatch(pattern, local):
            return f"{place}.{whole}"
    stem, _, leaf = local.rpartition(".")
    if stem == "post_attention_layernorm":
        return f"{place}.{'post_attention_norm' if kind in POST else 'ffn_norm'}.{leaf}"
    (new,) = [match.expand(ours) for pattern, ours in NAMES if (match := re.fullmatch(pattern, stem))]
    return f"{place}.{new}.{leaf}"


def is_plus_one(name: str, kind: str) -> bool:
    """Whether the weight of a norm is stored as 1 + w."""
    hybrid = kind in QWEN_HYBRIDS and name.endswith("norm.weight") and "linear_attn" not in name
    return hybrid or (kind in GEMMA and "norm" in name)


def rounded(name: str, tensor: Tensor, kind: str) -> Tensor:
    """Returns a tensor in float32 after it was written to a file and read back."""
    if is_plus_one(name, kind):
        return tensor + 1 - 1
    return tensor.exp().log() if name.endswith("A_log") else tensor


def converted(name: str, tensor: Tensor, kind: str, config: Config) -> Tensors:
    """Returns one of transformers' tensors as llama.cpp stores it."""
    numbers = re.findall(r"\.(\d+)\.", name)
    layer = f"blk.{numbers[0]}" if numbers else ""
    if ".experts." in name:
        return experts(name.rpartition(".")[2], layer, tensor, kind)
    if kind == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        tensor = tensor.T
    if kind in PAIRED and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        width = len(tensor) // heads
        order = [h * width + half for h in range(heads) for j in range(width // 2) for half in (j, j + width // 2)]
        tensor = tensor[order]
    if is_plus_one(name, kind):
        tensor = tensor + 1
    if kind.startswith("qwen35") and "linear_attn" in name:
        tensor = tiled(name, tensor, config)
    if kind == "qwen3next" and "in_proj_qkvz" in name:
        return unpacked(layer, tensor, config)
    if name.endswith("kv_b_proj.weight"):
        per_head = tensor.unflatten(0, (config["num_attention_heads"], -1))
        keys, values = per_head.split([config["qk_nope_head_dim"], config["v_head_dim"]], dim=1)
        return {f"{layer}.attn_k_b.weight": keys.transpose(1, 2), f"{layer}.attn_v_b.weight": values}
    if "shared_mlp.input_linear" in name:
        gate, up = tensor.chunk(2)
        return {f"{layer}.ffn_gate_shexp.weight": gate, f"{layer}.ffn_up_shexp.weight": up}
    if "self_attn.conv1d" in name:
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{layer}.ssm_conv1d_{x}.weight": part.reshape(1, len(part), 1, -1) for x, part in parts}
    return {renamed(name, kind): recurrent(name, tensor, kind, config)}


def recurrent(name: str, tensor: Tensor, kind: str, config: Config) -> Tensor:
    """Returns a parameter of a recurrent layer or a convolution as llama.cpp stores it."""
    if name.endswith("A_log"):
        tensor = -tensor.exp()
    if kind in ("granitehybrid", "nemotron_h_moe"):
        if name.endswith(("A_log", ".D")):
            return tensor[:, None]
        if name.endswith(("mamba.norm.weight", "mixer.norm.weight")):
            return tensor.reshape(config["mamba_n_groups" if kind == "granitehybrid" else "n_groups"], -1)
    return tensor.squeeze(1) if name.endswith(("conv1d.weight", "conv.conv.weight")) else tensor


def tiled(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Value heads (key head, number) -> (number, key head), in every axis that has them."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    before = 2 * keys * config["linear_key_head_dim"] if "in_proj_qkv" in name or "conv1d" in name else 0
    if name.endswith("norm.weight"):
        return tensor
    if "out_proj" in name:
        return tiled("", tensor.T, config).T
    width = (len(tensor) - before) // values
    order = [
        before + (key * (values // keys) + number) * width + i
        for number in range(values // keys)
        for key in range(keys)
        for i in range(width)
    ]
    return tensor[[*range(before), *order]]


def unpacked(layer: str, tensor: Tensor, config: Config) -> Tensors:
    """Reorders Qwen3-Next's queries, keys, values and gates: from one key head after the other to all rows of a kind
    together."""
    key, number = config["linear_key_head_dim"], config["linear_num_value_heads"] // config["linear_num_key_heads"]
    value = number * config["linear_value_head_dim"]
    heads = tensor.unflatten(0, (config["linear_num_key_heads"], -1))
    q, k, v, z = (part.flatten(0, 1) for part in heads.split([key, key, value, value], dim=1))
    return {f"{layer}.attn_qkv.weight": torch.cat([q, k, v]), f"{layer}.attn_gate.weight": z}


def experts(part: str, layer: str, tensor: Tensor, kind: str) -> Tensors:
    """transformers' experts: gate and up in one, for gpt-oss by turns; transposed for gpt-oss and Llama 4."""
    bias = part.endswith("_bias")
    if kind in ("gpt-oss", "llama4") and not bias:
        tensor = tensor.transpose(1, 2)
    leaf = "bias" if bias else "weight"
    if part.startswith(("down", "up")):
        return {f"{layer}.ffn_{part.partition('_')[0]}_exps.{leaf}": tensor}
    if kind in ("mistral4", "gemma4"):
        return {f"{layer}.ffn_gate_up_exps.weight": tensor}
    half = tensor.shape[1] // 2
    gate, up = (tensor[:, 0::2], tensor[:, 1::2]) if kind == "gpt-oss" else (tensor[:, :half], tensor[:, half:])
    return {f"{layer}.ffn_gate_exps.{leaf}": gate, f"{layer}.ffn_up_exps.{leaf}": up}


def rope_freqs(config: Config) -> np.ndarray:
    """Llama 3.1's factors, by the converter's formula (in float64)."""
    scaling, width = config["rope_scaling"], config.get("head_dim") or 16
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original, factor, found = scaling["original_max_position_embeddings"], scaling["factor"], []
    for i in range(0, width, 2):
        wavelength = 2 * np.pi * config["rope_theta"] ** (i / width)
        if wavelength < original / high:
            found.append(1)
        elif wavelength > original / low:
            found.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, dtype=np.float32)


def proportional_freqs(config: Config) -> np.ndarray:
    """Gemma 4's: pairs that do not rotate have a frequency of almost nothing."""
    pairs = config["global_head_dim"] // 2
    rotated = int(pairs * config["rope_parameters"]["full_attention"]["partial_rotary_factor"])
    return np.array([1.0] * rotated + [1e30] * (pairs - rotated), dtype=np.float32)


def write(path: Path, kind: str, said: dict[str, Any], tensors: dict[str, Any], words: int = 0) -> Path:
    """Writes a .gguf file. A pair of blocks and scales is written in the file's own form of MXFP4. `words`: the size of
    its vocabulary, if it has one."""
    writer = gguf.GGUFWriter(path, kind)
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add |= {bool: writer.add_bool, list: writer.add_array}
    for key, value in said.items():
        add[type(value)](f"{kind}.{key}", value)
    if words:
        writer.add_token_list([f"token {i}" for i in range(words)])
        writer.add_token_scores([float(-i) for i in range(words)])
        writer.add_token_types([1] * words)
        writer.add_eos_token_id(1)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, mxfp4_bytes(*tensor), raw_dtype=gguf.GGMLQuantizationType.MXFP4)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def mxfp4_bytes(blocks: Tensor, scales: Tensor) -> np.ndarray:
    """gpt-oss's blocks -> 17 bytes each: the scale, then elements 0 to 15 in low halves and 16 to 31 in high halves."""
    codes = torch.stack([blocks % 16, blocks // 16], dim=-1).flatten(-2)
    packed = torch.cat([scales[..., None], codes[..., :16] + 16 * codes[..., 16:]], dim=-1)
    return packed.flatten(-2).numpy()


class Case:
    """A toy reference, and its .gguf file's fields and tensors."""

    def __init__(self, name: str) -> None:
        self.name, self.kind = name, KINDS[name]
        self.config = toys.config(name)
        self.reference: nn.Module = deepcopy(toys.reference(name))
        state = self.reference.state_dict()
        self.reference.load_state_dict({key: rounded(key, tensor, self.kind) for key, tensor in state.items()})
        tied = self.config.get("tie_word_embeddings") or self.kind in {*GEMMA, "gpt2"}
        self.said, self.tensors = fields(self.config, self.kind), dict[str, Any]()
        for key, tensor in self.reference.state_dict().items():
            if key != "lm_head.weight" or not tied:
                self.tensors |= converted(key, tensor, self.kind, self.config)
        if "llama3" in str(self.config.get("rope_scaling")):
            self.tensors["rope_freqs.weight"] = rope_freqs(self.config)
        if "long_factor" in str(self.config.get("rope_scaling")):
            for length in ("short", "long"):
                factors = np.array(self.config["rope_scaling"][f"{length}_factor"], dtype=np.float32)
                self.tensors[f"rope_factors_{length}.weight"] = factors
        if self.kind == "gemma4":
            self.tensors["rope_freqs.weight"] = proportional_freqs(self.config)
        if self.said.get("nextn_predict_layers"):
            self.tensors[f"blk.{self.said['block_count'] - 1}.{PREDICTION}"] = np.ones((4, 8), dtype=np.float32)

    def write(self, path: Path) -> Path:
        """The file, with these fields and tensors."""
        return write(path, self.kind, self.said, self.tensors)

    def logits(self) -> tuple[Tensor, Tensor]:
        """Tokens, and the reference's logits in float64."""
        tokens = torch.randint(0, self.config["vocab_size"], (2, 80), generator=torch.Generator().manual_seed(1))
        return tokens, exact_logits(self.config, self.reference, tokens)
