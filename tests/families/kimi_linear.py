"""Kimi Linear: sizes and lists of layers, counted from one, in an object of the config."""

from typing import Any

from tests.families import Family


def _toy(config: dict[str, Any], full: dict[str, Any], layers: int) -> dict[str, Any]:
    given = full["linear_attn_config"]
    lists = {name: [i for i in given[name] if i <= layers] for name in ("full_attn_layers", "kda_layers")}
    return {"linear_attn_config": given | lists | {"num_heads": 4, "head_dim": 24}}


NAMES = {"num_experts_per_tok": "num_experts_per_token", "max_position_embeddings": "model_max_length"}
NAMES |= {"n_group": "num_expert_group"}
MISNAMED = {f"layers.0.block_sparse_moe.{name}_proj": f"layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")}
FAMILY = Family(names=NAMES, settled=("num_hidden_layers",), misnamed=MISNAMED, toy=_toy)
