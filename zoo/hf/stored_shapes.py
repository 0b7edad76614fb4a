"""Parameters by part and widths of layers, from the names and shapes of stored tensors.

The headers of safetensors files hold these. A tensor's role is recognised by the words that most families use in names;
a tensor whose role is not recognised counts in the part "other".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod

Shape = tuple[int, ...]
_LAYER = re.compile(r"(?P<stack>(?:\w+\.)*?(?:layers|h|blocks|layer))\.(?P<index>\d{1,5})\.(?P<rest>.+)")
_OTHER_MODELS = re.compile(
    r"(^|\.)(vision\w*|visual|vit|audio\w*|image\w*|video\w*|speech\w*|multi_modal\w*|mm_\w+|embed_vision|embed_audio)\."
)
_PREDICTION = re.compile(r"(^|\.)mtp\w*\.")
# Scales of a quantised tensor: the name without this suffix, with one of PACKED or none, is that of its codes.
_SCALES = re.compile(r"(_scale_inv|_scales|_scale_2|\.scales|_scale|\.scale|_zero_point|\.qzeros|\.g_idx|\.absmax)$")
PACKED = ("", "_blocks", ".weight", "_packed", ".qweight", ".weight_packed")
_BUFFER = re.compile(r"(rotary\w*\.inv_freq|\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias|position_ids)$")
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens\w*|wte|wpe|word_embeddings|tok_embeddings|embed_in|embeddings?|embed|position_embeddings?|"
    r"embed_positions|token_embd|shared)\.weight$"
)
_HEAD = re.compile(r"(^|\.)(lm_head|head|embed_out|output)\.(weight|bias)$")
_NORM = re.compile(r"((^|\.)(\w*norm\w*|ln_?\w*)\.(weight|bias)|^layer_scalar)$")
_EXPERTS = re.compile(r"(^|\.)(experts|local_experts|input_linear|output_linear)(\.|$)")
_INPUTS = re.compile(r"(^|\.)per_layer_(input_gate|(model_)?projection)\.")
_STREAMS = re.compile(r"(^|\.)hc_\w+$")
_LATENT = re.compile(r"latent_proj\.")
_SHARED = re.compile(r"(^|\.)(shared_experts?\w*|shared_mlp|shared_expert_gate)\.")
_ROUTER = re.compile(r"(^|\.)(gate|router|expert_bias|e_score_correction_bias|expert_biases)(\.|$)")
_INDEXER = re.compile(r"(^|\.)indexer\.")
_ATTENTION = re.compile(
    r"(^|\.)(\w*attn\w*|\w*attention\w*|mixer|mamba\w*|linear_attn|conv|short_conv|ssm|temporal_block|time_mix\w*)(\.|$)"
)
_FEED_FORWARD = re.compile(r"(^|\.)(\w*mlp\w*|feed_forward\w*|ffn\w*|\w*moe\w*|fc\d|dense_h_to_4h|dense_4h_to_h)(\.|$)")
_QUERIES = re.compile(r"(^|\.)(q_proj|query|wq|q_lin)\.weight$")
_KEYS = re.compile(r"(^|\.)(k_proj|key|wk|k_lin)\.weight$")
_VALUES = re.compile(r"(^|\.)(v_proj|value|wv|v_lin)\.weight$")
_OUTPUT = re.compile(r"(^|\.)(o_proj|out_proj|wo|c_proj|dense)\.weight$")
_FUSED_QKV = re.compile(r"(^|\.)(qkv_proj|c_attn|query_key_value|Wqkv|qkv|in_proj_qkv_fused)\.weight$")
_QK_NORM = re.compile(r"(^|\.)(q_norm|k_norm|q_layernorm|k_layernorm|q_ln|k_ln|query_layernorm|key_layernorm)\.weight$")
_STATE = re.compile(r"(^|\.)(A_log|conv1d|\w*_conv1d|in_proj_qkvz?|conv)\b")
_DOWN = re.compile(r"(^|\.)(down_proj|w2|c_proj|fc2|dense_4h_to_h|output_linear|wo|fc_out)(\.weight)?$")
_GATE = re.compile(r"(^|\.)(gate_proj|w1|w3|gate_up_proj|input_linear|wi_0|linear_v|gate_and_up_proj)(\.weight)?$")


@lru_cache(maxsize=100_000)
def part_of(rest: str) -> str:
    """Returns the part that a tensor of a layer belongs to, by its name within the layer: attn, ffn, routed, shared,
    router, indexer, inputs, streams, norm or other."""
    if _INDEXER.search(rest):
        return "indexer"
    if _SHARED.search(rest):
        return "shared"
    if _EXPERTS.search(rest) or _LATENT.search(rest):
        return "routed"
    if _INPUTS.search(rest) or _STREAMS.search(rest):
        return "inputs" if _INPUTS.search(rest) else "streams"
    if _NORM.search(rest):
        return "norm"
    if _ROUTER.search(rest) and not re.search(r"self_attn|attention", rest):
        return "router"
    if _FEED_FORWARD.search(rest):
        return "ffn"
    return "attn" if _ATTENTION.search(rest) else "other"


@dataclass(frozen=True)
class StoredLayer:
    """The tensors of one layer: name within the layer -> shape."""

    shapes: Mapping[str, Shape]

    def find(self, pattern: re.Pattern[str], part: str | None = None) -> Shape | None:
        """Returns the shape of the first tensor whose name matches, in one part of the layer if that is given."""
        found = (shape for name, shape in self.shapes.items() if pattern.search(name) and part in (None, part_of(name)))
        return next(found, None)

    def rows(self, pattern: re.Pattern[str], dim: int, part: str | None = None) -> int | None:
        """Returns the width that a matrix has beside the model's width `dim`, in either orientation."""
        shape = self.find(pattern, part)
        if shape is None or len(shape) != 2 or dim not in shape:
            return None
        return shape[0] if shape[1] == dim else shape[1]

    @property
    def keys_in(self) -> str | None:
        """The module with the projection to keys, alone or with queries and values; None without one."""
        return self._module_of(re.compile(f"{_KEYS.pattern}|{_FUSED_QKV.pattern}"))

    @property
    def state_in(self) -> str | None:
        """The module with parameters of a recurrence or of a convolution; None without one."""
        return self._module_of(_STATE)

    def _module_of(self, pattern: re.Pattern[str]) -> str | None:
        names = (name for name in self.shapes if pattern.search(name) and part_of(name) == "attn")
        return next((name.partition(".")[0] for name in names), None)

    def attention_widths(self, dim: int) -> tuple[int | None, int | None, int | None, int | None]:
        """Returns the widths of all queries, all keys, all values, and queries, keys and values fused; None: absent."""
        patterns = (_QUERIES, _KEYS, _VALUES, _FUSED_QKV)
        q, k, v, fused = (self.rows(pattern, dim, "attn") for pattern in patterns)
        return q, k, v, fused

    def gate_width(self, dim: int) -> int | None:
        """Returns the width of the gate on attention's output; None without one."""
        return self.rows(re.compile(r"(^|\.)(gate_proj|g_proj|gate)\.weight$"), dim, "attn")

    @property
    def output_width(self) -> Shape | None:
        """The shape of attention's output projection."""
        return self.find(_OUTPUT, "attn")

    @property
    def has_bias(self) -> tuple[bool, bool]:
        """Whether the projections to keys, and attention's output projection, have a bias."""
        names = {name for name in self.shapes if part_of(name) == "attn" and name.endswith(".bias")}
        keys, out = (
            any(pattern.search(name.removesuffix(".bias") + ".weight") for name in names)
            for pattern in (re.compile(f"{_KEYS.pattern}|{_FUSED_QKV.pattern}"), _OUTPUT)
        )
        return keys, out

    @property
    def qk_norm(self) -> int | None:
        """The width of the norm of the keys; None without QK-norm."""
        found = [shape[0] for name, shape in self.shapes.items() if _QK_NORM.search(name) and len(shape) == 1]
        return min(found, default=None)

    @property
    def has_sinks(self) -> bool:
        """Whether heads have learned sinks."""
        return any(name.rpartition(".")[2] == "sinks" for name in self.shapes)

    @property
    def norms(self) -> list[tuple[str, bool]]:
        """(name, has a bias) for each norm of the layer outside its blocks."""
        outside = [name for name in self.shapes if part_of(name) == "norm" and name.count(".") == 1]
        weights = [name.rpartition(".")[0] for name in outside if name.endswith(".weight")]
        return [(name, f"{name}.bias" in self.shapes) for name in weights]

    def parts(self) -> Counter[str]:
        """The number of stored values in each part of the layer."""
        counted: Counter[str] = Counter()
        for name, shape in self.shapes.items():
            counted[part_of(name)] += prod(shape)
        return counted

    def feed_forward(self, part: str, dim: int) -> tuple[int, bool, bool] | None:
        """Returns (hidden width, has a gate, has biases) of the dense, routed or shared feed-forward, whose inputs have
        the width `dim`; None: absent."""
        names = {name: shape for name, shape in self.shapes.items() if part_of(name) == part}
        down = next((shape[-2:] for name, shape in names.items() if _DOWN.search(name) and len(shape) > 1), None)
        if down is None or dim not in down:
            return None
        hidden = down[1] if down[0] == dim else down[0]
        return hidden, any(_GATE.search(name) for name in names), any("bias" in name for name in names)

    @property
    def experts(self) -> int | None:
        """The number of routed experts: that of separate tensors, or the first dimension of stacked ones."""
        numbers = [int(found[1]) for name in self.shapes if (found := re.search(r"experts\.(\d{1,5})\.", name))]
        if numbers:
            return max(numbers) + 1
        stacked = [shape[0] for name, shape in self.shapes.items() if part_of(name) == "routed" and len(shape) == 3]
        return stacked[0] if stacked else None

    @property
    def has_correction(self) -> bool:
        """Whether the router has a bias or a correction for each expert."""
        return any(part_of(name) == "router" and "bias" in name for name in self.shapes)

    @property
    def gates_shared(self) -> bool:
        """Whether the shared expert's output is multiplied by a gate of one row."""
        return any("shared_expert_gate" in name for name in self.shapes)


@dataclass(frozen=True)
class StoredShapes:
    """The stored tensors of a checkpoint: name -> shape. `packed`: the number of values in an element of a tensor in
    which several share one (4-bit codes in bytes: 2), by its name. `tables`: names of tensors of integers."""

    shapes: Mapping[str, Shape]
    packed: Mapping[str, int] = field(default_factory=dict)
    tables: frozenset[str] = frozenset()

    @cached_property
    def text(self) -> dict[str, Shape]:
        """The tensors of the language model: no other model's, no scales of quantised tensors, and no buffers."""
        return {name: shape for name, shape in self.shapes.items() if self.beside(name) is None}

    def beside(self, name: str) -> str | None:
        """Returns what a tensor is if it does not belong to the language model's parameters; None if it does."""
        if _OTHER_MODELS.search(name):
            return "other modalities"
        if (found := _SCALES.search(name)) and any(name[: found.start()] + end in self.shapes for end in PACKED):
            return "scales of quantised tensors"
        if name in self.tables:
            return "tables of integers"
        if (_BUFFER.search(name) and len(self.shapes[name]) != 1) or name.endswith("inv_freq"):
            return "buffers"
        if _PREDICTION.search(name):
            return "multi-token prediction"
        return None

    @cached_property
    def layers(self) -> list[StoredLayer]:
        """The layers of the longest stack of the language model."""
        stacks: dict[str, dict[int, dict[str, Shape]]] = {}
        for name, shape in self.text.items():
            if found := _LAYER.fullmatch(name):
                stacks.setdefault(found["stack"], {}).setdefault(int(found["index"]), {})[found["rest"]] = shape
        longest: dict[int, dict[str, Shape]] = max(stacks.values(), key=len, default={})
        return [StoredLayer(longest[index]) for index in sorted(longest)]

    def embedding(self) -> Shape | None:
        """Returns the shape of the largest embedding of tokens."""
        found = [shape for name, shape in self._outside() if _EMBEDDING.search(name) and len(shape) == 2]
        return max(found, key=lambda shape: shape[0], default=None)

    def positions(self) -> int | None:
        """Returns the number of learned positions; None without such a table."""
        pattern = re.compile(r"(^|\.)(wpe|position_embeddings?|embed_positions)\.weight$")
        return next((shape[0] for name, shape in self._outside() if pattern.search(name)), None)

    @property
    def has_head(self) -> bool:
        """Whether a head is stored."""
        return any(_HEAD.search(name) for name, _ in self._outside())

    def _outside(self) -> Iterator[tuple[str, Shape]]:
        return ((name, shape) for name, shape in self.text.items() if not _LAYER.fullmatch(name))

    def breakdown(self, layers: int | None = None, tied: bool = False) -> tuple[Counter[str], Counter[str]]:
        """Returns the number of stored values by part (embedding, head, attn, indexer, ffn, routed, shared, router,
        norm, other), and of those that are no parameters of the language model, by what they are.

        Layers beyond the first `layers` predict further tokens. With `tied`, a stored head is a copy of the embedding.
        """
        parts: Counter[str] = Counter()
        others: Counter[str] = Counter()
        for name, shape in self.shapes.items():
            values = prod(shape) * self.packed.get(name, 1)
            found, what = _LAYER.fullmatch(name), self.beside(name)
            if what is None and found and layers is not None and int(found["index"]) >= layers:
                what = "multi-token prediction"
            if what is None and not found and _HEAD.search(name) and tied:
                what = "a stored copy of the tied head"
            if what is not None:
                others[what] += values
            elif found:
                parts[part_of(found["rest"])] += values
            elif _EMBEDDING.search(name):
                parts["embedding"] += values
            elif _HEAD.search(name):
                parts["head"] += values
            else:
                outside = ("inputs", _INPUTS), ("norm", _NORM), ("streams", _STREAMS)
                parts[next((part for part, pattern in outside if pattern.search(name)), "other")] += values
        return parts, others
