"""Qwen3-Next: sizes of its linear layers."""

from tests.families import Family

# Memories of about 15 tokens, as trained models have long ones: where a state holds the last token alone, keys that are
# nearly orthogonal to the query leave a small sum, and its normalisation amplifies rounding errors.
FAMILY = Family(
    factors={"linear_attn.dt_bias": -3.0},
    widths={
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 24,
    },
)
