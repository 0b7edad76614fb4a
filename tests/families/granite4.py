"""Granite 4.0: Mamba-2 stays twice as wide as the model, scores one over a head's width, and logits reach 1."""

from __future__ import annotations

from tests.families import Config, Family


def toy(config: Config, full: Config, layers: int) -> Config:
    """A shared expert as many times as wide as a routed one; all else follows from the model's width."""
    times = full["shared_intermediate_size"] / full["intermediate_size"]
    shared = {"shared_intermediate_size": round(times * config["intermediate_size"])}
    return shared | {"mamba_d_head": 2 * config["hidden_size"] // 4, "attention_multiplier": 1 / 16}


FAMILY = Family(widths={"mamba_n_heads": 4, "mamba_d_state": 16, "logits_scaling": 1.5}, toy=toy)
