"""Phi-4-mini: LongRoPE has a factor for each pair of a head, and a window twice as long as the context."""

from tests.families import Config, Family


def toy(config: Config, full: Config, layers: int) -> Config:
    """Every eighth factor, for the 6 pairs of the toy's heads, in place of 48. Every pass of more than one token goes
    beyond an original context of one: passes within it would rotate their keys otherwise than the whole pass."""
    scaling = full["rope_scaling"]
    if scaling is None:
        return {}
    factors = {name: scaling[name][::8] for name in ("short_factor", "long_factor")}
    gain = {"attention_factor": (1 + 5 / 12) ** 0.5}  # ln 32 / ln 4096
    longer = {"sliding_window": 2 * config["max_position_embeddings"], "original_max_position_embeddings": 1}
    return {"rope_scaling": scaling | factors | gain, **longer}


FAMILY = Family(toy=toy)
