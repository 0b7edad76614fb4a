"""Gemma 4: two widths of heads; the text model is published inside a multimodal one."""

from __future__ import annotations

from tests.families import Config, Family


def toy(config: Config, full: Config, layers: int) -> Config:
    """The heads of layers without a window stay the wider ones."""
    kv_heads = full["num_global_key_value_heads"]
    return {"global_head_dim": 32, "num_global_key_value_heads": min(kv_heads, 2) if kv_heads else None}


# Scores are not scaled: with queries and keys normalised to one per element, attention would amplify rounding errors.
FAMILY = Family(
    toy=toy,
    widths={"final_logit_softcapping": 8.0},
    factors={"self_attn.q_norm.weight": 24**-0.5},
    settled=("hidden_size_per_layer_input", "num_global_key_value_heads", "rope_parameters"),
    wrappers={"gemma4_text": "gemma4", "gemma4_unified_text": "gemma4_unified"},
)
