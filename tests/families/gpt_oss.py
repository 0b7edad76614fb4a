"""gpt-oss: toy activations reach the clamp, and experts are stored as they multiply from the right."""

from tests.families import Family

FAMILY = Family(
    widths={"experts_per_token": 3, "initial_context_length": 64, "swiglu_limit": 1.0},
    transposed=("experts.gate_up_proj", "experts.down_proj"),
)
