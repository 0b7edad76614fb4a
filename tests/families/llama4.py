"""Llama 4: the text model is published inside a multimodal one; experts are stored as they multiply from the right."""

from tests.families import Family

FAMILY = Family(
    widths={"attention_chunk_size": 16, "floor_scale": 16, "intermediate_size_mlp": 96},
    wrappers={"llama4_text": "llama4"},
    transposed=("experts.gate_up_proj", "experts.down_proj"),
)
