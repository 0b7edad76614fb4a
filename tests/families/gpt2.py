"""GPT-2: names of its own for the fields that others share, and matrices stored as (inputs, outputs)."""

from tests.families import Family

FAMILY = Family(
    names={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "rms_norm_eps": "layer_norm_epsilon",
    },
    widths={"n_ctx": 1024},
    toy=lambda config, full, layers: {"n_inner": 96},
    transposed=("c_attn.weight", "c_proj.weight", "c_fc.weight"),
)
