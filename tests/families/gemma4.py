"""Gemma 4: two widths of heads; the text model is published inside a multimodal one."""

from __future__ import annotations

from tests.families import Config, Family


def toy(config: Config, full: Config, layers: int) -> Config:
    """The heads of layers without a window stay the wider ones. Where layers share keys and values, the
    last ones do, and one group of layers before them has its own."""
    kv_heads = full["num_global_key_value_heads"]
    period = full["layer_types"].index("full_attention") + 1
    shared = {"num_kv_shared_layers": full["num_kv_shared_layers"] and layers - period}
    return shared | {"global_head_dim": 32, "num_global_key_value_heads": min(kv_heads, 2) if kv_heads else None}


# Scores are not scaled: with queries and keys normalised to one per element, attention would amplify rounding errors.
FAMILY = Family(
    toy=toy,
    widths={"final_logit_softcapping": 8.0, "top_k_experts": 3}
    | {"vocab_size_per_layer_input": 512, "hidden_size_per_layer_input": 24},
    settled=("vocab_size_per_layer_input",),
    factors={"self_attn.q_norm.weight": 24**-0.5},
    wrappers={"gemma4_text": "gemma4", "gemma4_unified_text": "gemma4_unified"},
)
