"""MiniMax-M2: half of each head is rotated, said as a number of elements."""

from tests.families import Family

FAMILY = Family(toy=lambda config, full, layers: {"rotary_dim": config["head_dim"] // 2})
