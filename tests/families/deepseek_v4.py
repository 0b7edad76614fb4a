"""DeepSeek-V4: a toy's heavy compression is of 8 tokens, so that tests have many blocks; its indexer chooses fewer
entries than a test has, and by enough heads that few scores are ties."""

from __future__ import annotations

from tests.families import Config, Family

WIDTHS = {"o_groups": 2, "o_lora_rank": 20, "index_n_heads": 16, "index_head_dim": 24, "index_topk": 6}


def toy(config: Config, full: Config, layers: int) -> Config:
    """An entry of `compress_ratios` for each layer, and one for multi-token prediction."""
    rates = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}
    return {"compress_ratios": [*full["compress_ratios"][:layers], 0], "compress_rates": rates}


# What the reference writes of its own names, and what released files have there.
MISNAMED = {"model.embed_tokens.": "embed.", "model.hc_head.hc_": "hc_head_", "attn.norm.": "attn.kv_norm."}
FAMILY = Family(toy=toy, widths=WIDTHS | {"swiglu_limit": 1.0}, misnamed=MISNAMED | {"model.": ""})
