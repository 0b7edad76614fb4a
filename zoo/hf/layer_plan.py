"""The kind of each layer, from the fields with which published configs describe a pattern of layers.

A plan has two words for each layer: its mixer (full, window, chunk, mamba, delta, kda, conv, both or none) and its
feed-forward (dense, moe or none).
"""

from __future__ import annotations

from collections.abc import Sequence
from reprlib import repr as brief
from typing import Any, NamedTuple

from zoo.hf.shared_fields import SharedFields
from zoo.hf.stored_shapes import StoredLayer

WINDOWS = ("sliding_window", "window_size", "sliding_window_size", "attention_window_size", "local_window_size")
CHUNKS = ("attention_chunk_size",)
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
# An entry of a list of layers -> (mixer, feed-forward); None: whatever the other fields say.
_WORDS: dict[tuple[str | None, str | None], str] = {
    ("full", None): "full_attention attention global global_attention full attn hybrid",
    ("window", None): "sliding_attention sliding_window_attention sliding local local_attention hybrid_sliding swa",
    ("chunk", None): "chunked_attention",
    ("mamba", None): "mamba mamba2 ssm recurrent",
    ("linear", None): "linear_attention gated_deltanet kda linear",
    ("conv", None): "conv short_conv",
    ("none", "moe"): "moe",
    ("none", "dense"): "mlp ffn",
}
ENTRIES = {word: kind for kind, words in _WORDS.items() for word in words.split()}
LETTERS = {"M": ("mamba", "none"), "*": ("full", "none"), "E": ("none", "moe"), "-": ("none", "dense")}
MAX_LAYERS = 1_000  # a spec holds every layer
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
RULES: tuple[str, ...] = (
    "full_attn_idxs",
    "full_attention_interval",
    "global_attn_every_n_layers",
    "sliding_window_pattern",
)
RULES += ("_sliding_window_pattern", "attn_layer_period", "attn_layer_offset", "attn_layer_indices", "attn_type_list")
FIRST_DENSE = ("first_k_dense_replace", "num_dense_layers", "dense_mlp_idx", "moe_start_layer", "n_dense_layers")
FREQ = "moe_layer_freq"
STEPS = ("interleave_moe_layer_step", "decoder_sparse_step", "moe_every_n_layers")
LISTS = ("layer_types", "layers_block_type", "layer_block_types", "block_types", "layers_types")
STATES = ("mamba_d_state", "ssm_state_size", "state_size")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "ffn_config.moe_num_experts")


class Kind(NamedTuple):
    """The kind of one layer."""

    mixer: str
    ffn: str


def layer_count(fields: SharedFields) -> int:
    """Returns the number of layers, from its field or from the length of the list of layers."""
    found = fields.integer("number of layers", *LAYERS, most=MAX_LAYERS)
    if found is None:
        listed = fields.raw("the kind of each layer", "hybrid_override_pattern", *LISTS)
        found = len(listed) if isinstance(listed, list | str) and 0 < len(listed) <= MAX_LAYERS else None
    return found or fields.required("number of layers", *LAYERS)


def layer_plan(fields: SharedFields, layers: int, held: Sequence[StoredLayer] = ()) -> list[Kind]:
    """Returns the kind of every layer. `held` has the stored tensors of the layers, if they are known: where they
    contradict the fields, they count. Raises MalformedError for lists of another length."""
    mixers, given = _mixers(fields, layers)
    experts = fields.integer("routed experts", *EXPERTS, least=0)
    sparse = _sparse(fields, layers) if experts else set[int]()
    ffns = [given[i] or ("moe" if i in sparse else "dense") for i in range(layers)]
    plan = [Kind(mixer, ffn) for mixer, ffn in zip(mixers, ffns, strict=True)]
    return [_as_stored(fields, kind, each) for kind, each in zip(plan, held, strict=False)] if held else plan


def _as_stored(fields: SharedFields, kind: Kind, held: StoredLayer) -> Kind:
    """Returns the kind of a layer, corrected by the tensors that it has."""
    keys, state, parts = held.keys_in, held.state_in, held.parts()
    mixer, ffn = kind
    if keys is not None and state not in (None, keys):
        mixer = "both"
    elif keys is not None and state is None and kind.mixer in ("mamba", "delta", "kda", "conv", "both"):
        mixer = "full"
    elif keys is None and state is not None and kind.mixer in ("full", "window", "chunk", "both"):
        mixer = _linear(fields)
    if parts["routed"] or parts["ffn"]:
        ffn = "moe" if parts["routed"] else "dense"
    return Kind(mixer, ffn)


def _mixers(fields: SharedFields, layers: int) -> tuple[list[str], list[str | None]]:
    """Returns the mixer of each layer, and its feed-forward where a list of layers names it."""
    nothing: list[str | None] = [None] * layers
    pattern = fields.raw("the kind of each layer", "hybrid_override_pattern")
    if isinstance(pattern, str):
        if len(pattern) != layers or set(pattern) - LETTERS.keys():
            letters = ", ".join(LETTERS)
            raise fields.error(f"hybrid_override_pattern must have {layers} letters out of {letters}: {brief(pattern)}")
        return [LETTERS[letter][0] for letter in pattern], [LETTERS[letter][1] for letter in pattern]
    if listed := fields.listed("the kind of each layer", *LISTS, length=layers):
        name = str(fields.name_of(*LISTS))
        fields.restated(f"{name} says the same", *RULES)
        found = [_entry(fields, name, entry) for entry in listed]
        alone = any(ffn for _, ffn in found)  # a list with feed-forwards of their own: no layer has two branches
        mixers = [_linear(fields) if mixer == "linear" else str(mixer) for mixer, _ in found]
        return mixers, [ffn or ("none" if alone else None) for _, ffn in found]
    return _by_rule(fields, layers), nothing


def _entry(fields: SharedFields, name: str, entry: Any) -> tuple[str | None, str | None]:
    """Returns the mixer and the feed-forward that an entry of a list of layers means. An unknown word is a question."""
    if not isinstance(entry, str):
        raise fields.error(f"{name} holds {brief(entry)}, and must hold a word for each layer")
    if entry == "hybrid" and fields.name_of(*STATES):
        return "both", None
    if entry in ENTRIES:
        return ENTRIES[entry]
    answers = [("full attention", "full"), ("a mixer without a cache", "none")]
    return fields.ask(f"{name} holds {brief(entry)}: what such a layer is", answers), None


def _linear(fields: SharedFields) -> str:
    """Returns the recurrence that "linear attention" means here, by the fields that give its widths."""
    names = {"linear_attn_config.head_dim": "kda", "linear_num_key_heads": "delta", "conv_L_cache": "conv"}
    names |= dict.fromkeys(STATES, "mamba")
    if found := next((kind for name, kind in names.items() if fields.name_of(name)), None):
        return found
    answers = [("full attention", "full"), ("a mixer without a cache", "none")]
    return fields.ask("no field gives the state of linear attention: what it costs at most and at least", answers)


def _side_by_side(fields: SharedFields) -> bool:
    """Whether every layer has a state beside its attention, for a config with a state and without a list of layers."""
    question = "whether attention and a state stand side by side in every layer"
    return bool(fields.name_of(*STATES)) and fields.ask(question, [("yes", True), ("no", False)])


def _by_rule(fields: SharedFields, layers: int) -> list[str]:
    """Returns the mixers by a rule in other fields: an interval, a list of layers, a period, or a window for all."""
    count = dict(count=layers)
    for names, first, other in (
        (("full_attn_idxs",), 0, "conv"),
        (("linear_attn_config.full_attn_layers",), 1, "kda"),
        (("attn_layer_indices", "attention_layers_idx"), 0, "mamba"),
    ):
        full = fields.indices("layers with attention", *names, **count, first=first)
        if full is not None:
            fields.raw("layers without attention", "linear_attn_config.kda_layers")
            return ["full" if i in full else other for i in range(layers)]
    if (flags := fields.listed("1: attention, 0: linear attention", "attn_type_list", length=layers)) is not None:
        return ["full" if flag else _linear(fields) for flag in flags]
    if interval := fields.integer("layers between two with full attention", "full_attention_interval"):
        return ["full" if (i + 1) % interval == 0 else _linear(fields) for i in range(layers)]
    if period := fields.integer("layers between two with attention", "attn_layer_period"):
        offset = fields.integer("the first layer with attention", "attn_layer_offset", least=0) or 0
        return ["full" if i % period == offset else "mamba" for i in range(layers)]
    if not fields.integer("tokens in a chunk", *CHUNKS):
        plan = _windows(fields, layers)
        return ["both" if mixer == "full" else mixer for mixer in plan] if _side_by_side(fields) else plan
    if rotated := fields.listed("0: a layer without chunks", "no_rope_layers", length=layers):
        return ["chunk" if flag else "full" for flag in rotated]
    answers = [("three of four", 4), ("all", layers + 1), ("none", 1)]
    interval = fields.ask(f"which layers have {fields.shown(*CHUNKS)}", answers)
    return ["chunk" if (i + 1) % interval else "full" for i in range(layers)]


def _windows(fields: SharedFields, layers: int) -> list[str]:
    """Returns full or window for each layer of a model whose layers all have attention."""
    if fields.flag("whether windows are used", "use_sliding_window") is False:
        fields.raw("an unused window", *WINDOWS)
        return ["full"] * layers
    size, context = fields.integer("tokens in a window", *WINDOWS), fields.integer("the longest context", *CONTEXT)
    if size is None or (context is not None and size >= context):  # a window that no context fills
        return ["full"] * layers
    if local := fields.indices("layers with a window", "local_layer_ids", "local_layers", count=layers):
        return ["window" if i in local else "full" for i in range(layers)]
    names = "sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers"
    pattern = fields.values.get(names[0])
    if isinstance(pattern, str) and pattern and set(pattern) <= {*"LG"}:
        fields.raw("L: a window, G: none", names[0])
        return ["window" if pattern[i % len(pattern)] == "L" else "full" for i in range(layers)]
    if interval := fields.integer("layers between two without a window", *names):
        return ["full" if (i + 1) % interval == 0 else "window" for i in range(layers)]
    if fields.name_of("use_sliding_window"):
        first = fields.integer("the first layer with a window", "max_window_layers", least=0, most=layers) or 0
        return ["window" if i >= first else "full" for i in range(layers)]
    window = fields.shown(*WINDOWS)
    which = fields.ask(
        f"which layers have {window}", [("all", layers), ("every second, the first included", 2), ("none", 0)]
    )
    return ["window" if which == layers or (which and i % which == 0) else "full" for i in range(layers)]


def _sparse(fields: SharedFields, layers: int) -> set[int]:
    """Returns the layers whose feed-forward is a mixture of experts."""
    every = set(range(layers))
    if listed := fields.listed("dense or sparse, for each layer", "mlp_layer_types", length=layers):
        fields.restated("mlp_layer_types says the same", *FIRST_DENSE, FREQ)
        return {i for i in every if listed[i] in ("sparse", "moe")}
    if period := fields.integer("layers between two with experts", "expert_layer_period"):
        offset = fields.integer("the first layer with experts", "expert_layer_offset", least=0) or 0
        return {i for i in every if i % period == offset}
    dense = fields.integer("dense layers before those with experts", *FIRST_DENSE, least=0) or 0
    only = fields.indices("dense layers", "mlp_only_layers", count=layers) or set()
    if isinstance(fields.values.get(FREQ), list):
        flags = fields.listed("1: experts, 0: dense", FREQ, length=layers) or []
        return {i for i in every if flags[i]}
    step = fields.integer("layers between two with experts", *STEPS) or 1
    from_first = fields.integer("layers between two with experts, from the first layer", FREQ) or 1
    return {i for i in every if i >= dense and i not in only and (i + 1) % step == 0 and i % from_first == 0}
