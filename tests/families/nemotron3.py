"""Nemotron 3: the kinds of its layers are one text or one list, from which the reference counts them."""

from __future__ import annotations

from tests.families import Config, Family


def toy(config: Config, full: Config, layers: int) -> Config:
    """The first layers, a shared expert as many times as wide as a routed one, and Mamba-2 as many times as wide as the
    model, where it is a multiple."""
    plans = {name: full[name][:layers] for name in ("hybrid_override_pattern", "layers_block_type") if name in full}
    times = full["moe_shared_expert_intermediate_size"] / full["moe_intermediate_size"]
    expand, rest = divmod(full["mamba_num_heads"] * full["mamba_head_dim"], full["hidden_size"])
    widths = {"moe_shared_expert_intermediate_size": round(times * config["moe_intermediate_size"])}
    return plans | widths | ({} if rest else {"mamba_head_dim": expand * config["hidden_size"] // 4})


FAMILY = Family(
    widths={"mamba_num_heads": 4, "mamba_head_dim": 24, "n_groups": 2, "ssm_state_size": 16, "moe_latent_size": 40}
    | {"time_step_min": 1e-9},
    names={"rms_norm_eps": "layer_norm_epsilon"},
    toy=toy,
)
