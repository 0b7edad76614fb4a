"""Qwen3-Next: sizes of its linear layers."""

from tests.families import Family

FAMILY = Family(
    widths={
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 24,
    }
)
