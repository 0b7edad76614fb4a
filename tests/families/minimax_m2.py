"""MiniMax-M2: the rotated elements of a head are counted."""

from tests.families import Family

FAMILY = Family(
    toy=lambda config, full, layers: {"rotary_dim": config["head_dim"] * full["rotary_dim"] // full["head_dim"]}
)
