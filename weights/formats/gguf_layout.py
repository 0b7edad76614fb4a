"""The layout of each architecture in llama.cpp's files: names of tensors, and the changes that its converter makes.

For each tensor of Hugging Face's layout, the gguf library gives the name in a .gguf file. `Architecture` states further
differences. Its `rules` are for parameters that are split or joined differently, with the GGUF names of a layer's
tensors. Its `changes` are for tensors with different values, or with the same values in another order.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from einops import rearrange
from torch import Tensor

from zoo.blocks import SharedKV
from zoo.blocks.delta_rule import GatedDeltaNet
from zoo.hf.checkpoint_layout import GLU_NAMES, Rename, Rules, Skipped, fused_qkv, stacked_gate_up

Undo = Callable[[Tensor, Any], Tensor]  # (tensor, mixer of its layer) -> the tensor before the change


@dataclass(frozen=True)
class Change:
    """A change that llama.cpp's converter makes to tensors whose Hugging Face names end with `pattern` (a regular
    expression). `undo` reverses it and keeps the shape."""

    pattern: str
    undo: Undo

    def applies(self, name: str) -> bool:
        return re.search(f"{self.pattern}$", name) is not None


@dataclass(frozen=True)
class Architecture:
    """An architecture of GGUF. `families` are the zoo's families whose files have this architecture."""

    families: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    rules: Rules = ()


def _minus_one(tensor: Tensor, mixer: Any) -> Tensor:
    return tensor - 1


def _log_of_negative(tensor: Tensor, mixer: Any) -> Tensor:
    return (-tensor).log()


def _halves(heads: str) -> Undo:
    """Returns a function that reorders the rows of each head for RoPE. In the file, rows 2j and 2j + 1 rotate as a
    pair. In Hugging Face's layout, a pair's rows are half a head apart."""

    def undo(tensor: Tensor, mixer: Any) -> Tensor:
        return rearrange(tensor, "(h pair side) ... -> (h side pair) ...", h=getattr(mixer, heads), side=2)

    return undo


def _grouped(axis: int = 0, after_keys: bool = False) -> Undo:
    """Returns a function that reorders value heads along an axis. The file stores the first value head of every key
    head, then the second value head of every key head. Hugging Face stores all value heads of the first key head, then
    all value heads of the second. With `after_keys`, queries and keys come first and stay in place."""

    def undo(tensor: Tensor, mixer: Any) -> Tensor:
        start = 2 * mixer.key_heads * mixer.key_dim if after_keys else 0
        before, tiled = tensor.tensor_split([start], dim=axis)
        split = tiled.unflatten(axis, (mixer.value_heads // mixer.key_heads, mixer.key_heads, -1))
        return torch.cat([before, split.transpose(axis, axis + 1).flatten(axis, axis + 2)], dim=axis)

    return undo


# Norm weights are stored as 1 + w where Hugging Face has w, and decays as -exp(A_log).
PLUS_ONE = (Change(r"norm\.weight", _minus_one),)
DECAY = (Change(r"\.A_log", _log_of_negative),)
PAIRED = tuple(Change(rf"\.{x}_proj\.weight", _halves(heads)) for x, heads in (("q", "heads"), ("k", "kv_heads")))
DELTA_NET = (Change(r"(?<!linear_attn\.)norm\.weight", _minus_one), *DECAY)
TILED = (
    Change(r"linear_attn\.(in_proj_qkv|conv1d)\.weight", _grouped(after_keys=True)),
    Change(r"linear_attn\.(in_proj_[zab]\.weight|A_log|dt_bias)", _grouped()),
    Change(r"linear_attn\.out_proj\.weight", _grouped(axis=1)),
)
# Experts are stacked, neither transposed nor interleaved. Gate and up are in two tensors, or in one.
EXPERTS: Rules = (
    *(Rename(f"ffn.block.experts.{part}", f"ffn_{part}_exps.weight") for part in GLU_NAMES),
    *(Rename(f"ffn.block.experts.{part}_bias", f"ffn_{part}_exps.bias") for part in GLU_NAMES),
    stacked_gate_up("ffn_gate_up_exps.weight"),
)
SINKS: Rules = (Rename("attn.block.sinks", "attn_sinks.weight"),)
PREDICTION: Rules = (Skipped("blk.{layers}.*", "the multi-token prediction layer"),)
QKVZ: Rules = tuple(Rename(f"attn.block.{x}", f"attn_{x}", mixer=GatedDeltaNet) for x in ("qkv", "gate"))
SHARED_EXPERT: Rules = tuple(Rename(f"ffn.block.shared.{x}", f"ffn_{x}_shexp") for x in ("gate", "up"))
# GPT-2's matrices are transposed, which makes them like those of other architectures.
GPT2: Rules = (
    fused_qkv("attn_qkv"),
    Rename("attn.block.o", "attn_output"),
    *(Rename(f"ffn.block.{part}", f"ffn_{part}") for part in ("up", "down")),
)

# Each dense feed-forward has experts beside it. The router's factors are stored beside the matrices that they scale.
GEMMA4: Rules = (
    Rename("ffn.block.routed.router.norm.weight", "ffn_gate_inp.scale"),
    Rename("ffn.block.routed.router.expert_scale", "ffn_down_exps.scale"),
    Rename("ffn.block.routed.experts.down", "ffn_down_exps.weight"),
    stacked_gate_up("ffn_gate_up_exps.weight", "ffn.block.routed.experts"),
    *(
        Skipped(f"blk.{{i}}.attn_{name}.weight", "keys and values that are not used", mixer=SharedKV)
        for name in ("k", "v", "k_norm")
    ),
)

# In GGUF, Mistral Small 3.1 and Mixtral have Llama's name.
ARCHITECTURES: dict[str, Architecture] = {
    "afmoe": Architecture(("trinity",)),
    "deepseek2": Architecture(("deepseek-v3", "kimi-k2")),
    "gemma2": Architecture(("gemma2",), PLUS_ONE),
    "gemma3": Architecture(("gemma3",), PLUS_ONE),
    "gemma4": Architecture(("gemma4",), rules=GEMMA4),
    "glm-dsa": Architecture(("glm5",), rules=PREDICTION),
    "glm4moe": Architecture(("glm4-5",), rules=PREDICTION),
    "gpt-oss": Architecture(("gpt-oss",), rules=SINKS),
    "gpt2": Architecture(("gpt2",), rules=GPT2),
    "granitehybrid": Architecture(("granite4",), (*PAIRED, *DECAY), SHARED_EXPERT),
    "kimi-linear": Architecture(("kimi-linear",), DECAY),
    "lfm2": Architecture(("lfm2",)),
    "lfm2moe": Architecture(("lfm2",)),
    "llama": Architecture(("llama3", "mistral3", "mixtral"), PAIRED),
    "llama4": Architecture(("llama4",)),
    "minimax-m2": Architecture(("minimax-m2",)),
    "mistral3": Architecture(("mistral3", "ministral3"), PAIRED),
    "mistral4": Architecture(("mistral4",)),
    "nemotron_h_moe": Architecture(("nemotron3",), DECAY, PREDICTION),
    "olmo2": Architecture(("olmo2", "olmo3")),
    "phi3": Architecture(("phi4",)),
    "qwen2": Architecture(("qwen2-5",)),
    "qwen3": Architecture(("qwen3",)),
    "qwen35": Architecture(("qwen3-5",), (*DELTA_NET, *TILED), PREDICTION),
    "qwen35moe": Architecture(("qwen3-5",), (*DELTA_NET, *TILED), PREDICTION),
    "qwen3moe": Architecture(("qwen3",)),
    "qwen3next": Architecture(("qwen3-next",), DELTA_NET, QKVZ),
    "smollm3": Architecture(("smollm3",), PAIRED),
}
# Layer tensors that the library does not find by their Hugging Face name: end of that name -> GGUF's name.
BY_ENDING = {"e_score_correction_bias": "exp_probs_b.bias", "expert_bias": "exp_probs_b.bias"}
BY_ENDING |= {"dt_bias": "ssm_dt.bias", "layer_scalar": "layer_output_scale.weight"}
LAYER = "blk.{bid}."
OF_LAYERS = {name.removeprefix(LAYER) for name in gguf.TENSOR_NAMES.values() if name.startswith(LAYER)}
FLATTENED = ("ssm_norm.weight",)  # stored with an axis for the groups


class TensorNames:
    """GGUF's names of the tensors of an architecture with a given number of layers."""

    def __init__(self, kind: str, layers: int) -> None:
        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        self._table = gguf.get_tensor_name_map(kinds[kind], layers)

    def __call__(self, name: str) -> str | None:
        """Returns the GGUF name for a name of Hugging Face or of the rules above, or None if there is no GGUF name."""
        if found := re.fullmatch(r".*?layers\.(\d+)\.(.+)|.*?\.h\.(\d+)\.(.+)", name):
            number, local = found[1] or found[3], found[2] or found[4]
            ending = next((ours for theirs, ours in BY_ENDING.items() if local.endswith(theirs)), None)
            if ending or re.sub(r"\.(weight|bias|scale)$", "", local) in OF_LAYERS:
                return f"blk.{number}.{ending or local}"
        mapped: str | None = self._table.get_name(name, try_suffixes=(".weight", ".bias"))
        return mapped


def split_parts(name: str) -> tuple[str, str] | None:
    """Returns the names of the two tensors that kv_b is split into, transposed keys and values; None for other
    names."""
    stem, separator, leaf = name.partition("attn_kv_b")
    return (f"{stem}attn_k_b{leaf}", f"{stem}attn_v_b{leaf}") if separator else None


def joined_shape(keys: tuple[int, ...], values: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of `joined` for parts of these shapes. If they cannot be joined, it returns the keys' shape."""
    if len(keys) != 3 or len(values) != 3 or (keys[0], keys[1]) != (values[0], values[2]):
        return keys
    return keys[0] * (keys[2] + values[1]), keys[1]


def joined(keys: Tensor, values: Tensor) -> Tensor:
    """Joins keys (h, r, nope) and values (h, v, r) to (h * (nope + v), r): for each head its keys and then its
    values."""
    return torch.cat([keys.mT, values], dim=1).flatten(0, 1)


def undone(name: str, tensor: Tensor, mixer: Any, changes: Iterable[Change]) -> Tensor:
    """Returns a tensor as Hugging Face stores it, by undoing the `changes` that apply to its name."""
    for change in changes:
        if change.applies(name):
            tensor = change.undo(tensor, mixer)
    return tensor
